"""Who may use the HTTP API: programs that know the token of the data folder. Nothing is served without it."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.files import write_atomically
from trainer.paths import DataFolder

API_PATH = "/api/v1"
TOKEN_HEADER = "x-inkwash-token"  # noqa: S105 - the name of the header
_TOKEN_CHARACTERS = 43
_WRONG_TOKEN_SECONDS = 0.2
_MAX_BODY_BYTES = 2_000_000


def token_path(data: DataFolder) -> Path:
    """Where the token lies; only the user of this computer can read it."""
    return data.root / "api-token"


def load_token(data: DataFolder) -> str:
    """The token of a data folder, made when it is first asked for. Delete the file to have another."""
    path = token_path(data)
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        token = ""
    if len(token) >= _TOKEN_CHARACTERS:
        return token
    token = secrets.token_urlsafe(32)
    write_atomically(path, lambda temporary: _write_private(temporary, token), "the token of the API")
    return token


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{text}\n")


class TokenGuard:
    """In front of the whole API: 401 without the token, 413 for bodies that no settings have."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            return
        headers = {key.lower(): value for key, value in scope.get("headers", [])}
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = headers.get(TOKEN_HEADER.encode(), bearer if scheme.lower() == b"bearer" else b"")
        if not secrets.compare_digest(given, self._token):
            await asyncio.sleep(_WRONG_TOKEN_SECONDS)
            await _answer(
                send, 401, b"The token is needed: Authorization: Bearer TOKEN.", (b"www-authenticate", b"Bearer")
            )
            return
        length = headers.get(b"content-length", b"0")
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower() or not length.isdigit():
            await _answer(send, 411, b"The length of the body is needed.")
            return
        if int(length) > _MAX_BODY_BYTES:
            await _answer(send, 413, b"The body is too large.")
            return
        await self._app(scope, receive, send)


class ApiMount:
    """Hands requests for the API to it, and all others to the page."""

    def __init__(self, app: ASGIApp, api: ASGIApp) -> None:
        self._app = app
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        path = str(scope.get("path", ""))
        is_api = scope["type"] == "http" and (path == API_PATH or path.startswith(f"{API_PATH}/"))
        await (self._api if is_api else self._app)(scope, receive, send)


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": body})
