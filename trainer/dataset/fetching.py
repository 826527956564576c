"""Getting one picture from an address that the user gave: no other place is asked, and nothing but a picture is kept.

An address in a stranger's list may point into the own network, at a page that never ends, or from one to the other by a redirect. So each
connection is made to the very IP address that was checked, and size and time are limited whatever the server says.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from trainer import __version__
from trainer.config.fetch import checked_address
from trainer.dataset.archives import safe_file_name
from trainer.dataset.pictures import UnusablePicture, read_picture
from trainer.errors import DatasetError
from trainer.files import write_atomically

_MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_KEPT = "/?&=%:@!$'()*+,;~-._"
_STARTS = (
    (b"\xff\xd8\xff", 0, ".jpg"),
    (b"\x89PNG\r\n\x1a\n", 0, ".png"),
    (b"GIF8", 0, ".gif"),
    (b"WEBP", 8, ".webp"),
    (b"BM", 0, ".bmp"),
    (b"II*\0", 0, ".tif"),
    (b"MM\0*", 0, ".tif"),
    (b"ftypavi", 4, ".avif"),
    (b"ftyphei", 4, ".heic"),
    (b"ftypmif1", 4, ".heic"),
    (b"\0\0\0\x0cJXL ", 0, ".jxl"),
    (b"\xff\x0a", 0, ".jxl"),  # without a container
)


@dataclass(frozen=True)
class FetchLimits:
    """What a file may be: bytes, seconds, and whether it may come from the own machine and network."""

    max_bytes: int
    max_seconds: float
    allow_private: bool = False


def fetch_picture(
    address: str, folder: Path, limits: FetchLimits, check_stop: Callable[[], object] = lambda: None
) -> Path:
    """Get a picture into `folder`, under the name that its address has and the ending that its content wants.

    Args:
        check_stop: called between pieces; what it raises ends the fetching.

    Raises: DatasetError: it cannot be got, is too large or slow, lies in the own network, or is no picture. ResourceError.
    """
    data, final = _get(address, limits, check_stop)
    suffix = next((end for start, at, end in _STARTS if data[at : at + len(start)] == start), "")
    if not suffix:
        raise DatasetError("What lies at this address is not a picture.", where=address, fix="Give the picture's own.")
    name = PurePosixPath(unquote(urlsplit(final).path)).stem or "picture"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / safe_file_name(f"{name[:100]}{suffix}")
    write_atomically(path, lambda temporary: _checked(temporary, data, address), "a fetched picture")
    return path


def _checked(path: Path, data: bytes, address: str) -> None:
    path.write_bytes(data)
    try:
        read_picture(path)
    except UnusablePicture as failure:
        raise DatasetError(failure.message, where=address, fix=failure.fix) from failure


def _get(address: str, limits: FetchLimits, check_stop: Callable[[], object]) -> tuple[bytes, str]:
    """The bytes at an address and the address that they came from in the end."""
    place = address
    for _ in range(_MAX_REDIRECTS + 1):
        try:
            found = _ask(checked_address(place), limits, check_stop)
        except ValueError as failure:
            raise DatasetError(f"This cannot be fetched: {failure}.", where=address) from failure
        if isinstance(found, bytes):
            return found, place
        place = urljoin(place, found)
    raise DatasetError("This address only leads to other addresses.", where=address)


def _ask(address: str, limits: FetchLimits, check_stop: Callable[[], object]) -> bytes | str:
    """The bytes at an address, or the address that it sends on to."""
    parts = urlsplit(address)
    connection = _connection(address, limits)
    is_late = threading.Event()
    held: list[socket.socket] = []

    def end() -> None:
        is_late.set()
        for sock in held:
            _shut(sock)

    clock = threading.Timer(limits.max_seconds, end)
    clock.daemon = True
    clock.start()
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": f"Inkwash/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", quote(path, safe=_KEPT), headers=headers)
        # The answer takes the socket over and the connection forgets it.
        held.append(connection.sock)
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
            return str(answer.headers["Location"])
        if answer.status != 200:
            raise DatasetError(f"The server answers {answer.status} ({answer.reason}).", where=address)
        return _read(answer, limits, address, check_stop, is_late)
    except (OSError, http.client.HTTPException) as failure:
        if is_late.is_set():
            raise _late(address, limits) from failure
        reason = getattr(failure, "strerror", None) or failure or type(failure).__name__
        raise DatasetError(f"This address cannot be reached ({reason}).", where=address) from failure
    finally:
        clock.cancel()
        connection.close()


def _read(
    answer: http.client.HTTPResponse,
    limits: FetchLimits,
    address: str,
    check_stop: Callable[[], object],
    is_late: threading.Event,
) -> bytes:
    data = bytearray()
    while piece := answer.read1(_CHUNK):
        check_stop()
        if is_late.is_set():
            raise _late(address, limits)
        data += piece
        if len(data) > limits.max_bytes:
            raise DatasetError(f"This file is larger than {limits.max_bytes / 1e6:g} MB.", where=address)
    if is_late.is_set():
        raise _late(address, limits)
    expected = answer.headers.get("Content-Length", "")
    if expected.isdigit() and len(data) < int(expected):
        raise DatasetError("The connection broke off before the picture was whole.", where=address)
    return bytes(data)


def _connection(address: str, limits: FetchLimits) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=limits.max_seconds, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=limits.max_seconds)
    )

    def connect(place: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        return socket.create_connection((_checked_ip(*place, limits, address), place[1]), timeout, source)

    # The one place where the standard library looks a name up; what it then connects to is what was checked.
    connection._create_connection = connect  # pyright: ignore[reportAttributeAccessIssue]
    return connection


def _checked_ip(host: str, port: int, limits: FetchLimits, address: str) -> str:
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for text in found:
        ip = ipaddress.ip_address(text.partition("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        is_public = (mapped or ip).is_global and not (mapped or ip).is_multicast
        if not is_public and not limits.allow_private:
            raise DatasetError(
                "This address lies in your own machine or network, and was not asked.",
                where=address,
                fix="Allow private addresses if the list is your own.",
            )
    return found[0]


def _shut(sock: socket.socket) -> None:
    try:
        # Of the plain socket: that of TLS would throw its state away under the reader's feet.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it ended by itself in this moment


def _late(address: str, limits: FetchLimits) -> DatasetError:
    return DatasetError(f"This picture took longer than {limits.max_seconds:g} seconds.", where=address)
