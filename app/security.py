"""Who may talk to the page: programs on this machine and the page itself, no other web site.

Gradio answers any Host and any cross-site upload, so a site open in the same browser could drive the app (DNS
rebinding, cross-site requests). Two ASGI layers close both.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.files import is_inside

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SERVED_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".safetensors"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on `host`."""
    return host in ("127.0.0.1", "localhost", "::1")


def allowed_hosts(host: str) -> list[str]:
    """Host names under which a server on `host` answers."""
    if is_loopback(host):
        return list(LOOPBACK)
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return [*LOOPBACK, host]
    addresses = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries]
    return [*LOOPBACK, socket.gethostname(), *(address for address in addresses if address.count(".") == 3)]


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


async def _refuse(scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = b"Refused: this is not for other web sites, or not for the page."
    await send(
        {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}
    )
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


def app_options(host: str, runs: Path) -> dict[str, Any]:
    """Arguments for the FastAPI app that gradio makes: the guards, and no API documentation pages."""
    return {
        "middleware": [
            Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False),
            Middleware(OriginGuard),
            Middleware(RunFilesGuard, runs=runs),
        ],
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
    }
