"""Who may talk to the page: programs on this machine and the page itself, no other web site; from other machines, who
knows the password.

Gradio answers any Host and any cross-site upload, so a site open in the same browser could drive the app (DNS
rebinding, cross-site requests). Two ASGI layers close both. Gradio's own login leaves some of its addresses open
(uploads, the queue), so the password is a layer in front of all of them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api_access import ApiMount
from trainer.errors import ConfigError
from trainer.files import is_inside

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PASSWORD_VARIABLE = "INKWASH_PASSWORD"  # noqa: S105 - the name of the variable
_MIN_PASSWORD = 8
_WRONG_PASSWORD_SECONDS = 1.0
# What gradio asks itself while it starts; it does nothing the second time.
_STARTUP_PATH = "/gradio_api/startup-events"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SERVED_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".safetensors"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str) -> list[str]:
    """Host names under which a server on `host` answers."""
    if is_loopback(host):
        return list(dict.fromkeys((*LOOPBACK, host)))
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [*LOOPBACK, host]
    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [*LOOPBACK, socket.gethostname(), *(address for address in addresses if address.count(".") == 3)]


def check_password(host: str, password: str) -> None:
    """Refuse to serve other machines without a password. Raises ConfigError."""
    if is_loopback(host) or len(password) >= _MIN_PASSWORD:
        return
    raise ConfigError(
        f"On {host} everyone in the network could use the app and see your pictures"
        + ("." if not password else f": a password of fewer than {_MIN_PASSWORD} characters is soon guessed."),
        where="--host",
        fix=f"Set a password of at least {_MIN_PASSWORD} characters with --password or ${PASSWORD_VARIABLE}, "
        "or leave --host out.",
    )


class PasswordGuard:
    """Asks for a password (HTTP Basic, RFC 7617) before anything is answered; the user name does not matter.

    The connection is not encrypted: over networks of strangers, put a proxy with TLS in front.
    """

    def __init__(self, app: ASGIApp, password: str) -> None:
        self._app = app
        self._password = password.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        is_asked = scope["type"] in ("http", "websocket") and scope.get("path") != _STARTUP_PATH
        if not is_asked:
            await self._app(scope, receive, send)
            return
        given = _given_password(scope)
        if given is not None and secrets.compare_digest(given, self._password):
            await self._app(scope, receive, send)
            return
        if given is not None:
            await asyncio.sleep(_WRONG_PASSWORD_SECONDS)  # so that guessing takes its time
        challenge = (b"www-authenticate", b'Basic realm="Inkwash", charset="UTF-8"')
        await _refuse(scope, send, 401, b"The password is needed; any user name will do.", challenge)


def _given_password(scope: Scope) -> bytes | None:
    value = next((value for key, value in scope.get("headers", []) if key.lower() == b"authorization"), b"")
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


class OriginGuard:
    """Refuses (403) what another web site makes a browser send.

    Programs that are not browsers send neither Origin nor Sec-Fetch-Site and pass; they are on this machine already.
    A link from another site to the page itself is let through, nothing else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] in ("http", "websocket") and not is_own_request(scope):
            await _refuse(scope, send)
            return
        await self._app(scope, receive, send)


def is_own_request(scope: Scope) -> bool:
    """Whether a request comes from the page itself, from a program, or is a plain visit."""
    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope.get("headers", [])}
    is_visit = (
        scope.get("method") == "GET"
        and scope.get("path") == "/"
        and headers.get("sec-fetch-mode", "navigate") == "navigate"
    )
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return is_visit
    origin = headers.get("origin")
    if origin is None:
        return True
    if urlsplit(origin).netloc == headers.get("host"):
        return True
    return is_visit and scope["method"] in _SAFE_METHODS and origin != "null"


_REFUSED = b"Refused: this is not for other web sites, or not for the page."


async def _refuse(
    scope: Scope, send: Send, status: int = 403, body: bytes = _REFUSED, *headers: tuple[bytes, bytes]
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": body})


class RunFilesGuard:
    """Of the run folders only pictures and LoRA files are served, not settings and logs (gradio allows whole folders)."""

    def __init__(self, app: ASGIApp, runs: Path) -> None:
        self._app = app
        self._runs = runs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        _, is_file, name = str(scope.get("path", "")).partition("/file=")
        if is_file and is_inside(Path(name), self._runs) and Path(name).suffix.lower() not in _SERVED_SUFFIXES:
            await _refuse(scope, send)
            return
        await self._app(scope, receive, send)


def app_options(host: str, runs: Path, password: str = "", api: ASGIApp | None = None) -> dict[str, Any]:
    """Arguments for the FastAPI app that gradio makes: the guards, our API behind them if it is enabled, and no pages of
    gradio's own API.

    Raises: ConfigError: other machines reach `host`, and there is no password.
    """
    check_password(host, password)
    return {
        "middleware": [
            Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False),
            Middleware(OriginGuard),
            *([Middleware(PasswordGuard, password=password)] if password else []),
            Middleware(RunFilesGuard, runs=runs),
            *([Middleware(ApiMount, api=api)] if api is not None else []),
        ],
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
    }
