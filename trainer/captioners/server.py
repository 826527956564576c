"""A vision-language model behind the HTTP interface that local servers share: `/v1/chat/completions` with the picture in the question.

Only the address that the user gave is asked: no redirects, no proxies.
"""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
from PIL import Image

from trainer.captioners.captioner import Description, Subject
from trainer.captioners.guides import PROMPTS
from trainer.config.caption import CaptionConfig, ServerSettings
from trainer.errors import ResourceError

KEY_VARIABLE = "INKWASH_CAPTION_KEY"
_MAX_ANSWER_BYTES = 1_000_000
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_PAUSE_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)", re.DOTALL)


class ServerCaptioner:
    """A server and the model on it."""

    def __init__(self, settings: ServerSettings, model: str, guide: str, check_stop: Callable[[], None]) -> None:
        self._settings, self._check_stop = settings, check_stop
        self._prompt = settings.prompt or PROMPTS[guide]
        key = os.environ.get(KEY_VARIABLE, "")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout_seconds, connect=min(_CONNECT_SECONDS, settings.timeout_seconds)),
            follow_redirects=False,
            trust_env=False,
        )
        self._base = endpoint(settings.address)
        self._model = model or self._only_model()

    def describe(self, subject: Subject) -> Description:
        """The model's answer. Raises ResourceError: the server does not answer, or not in this form."""
        question = [
            {"type": "text", "text": self._prompt},
            {"type": "image_url", "image_url": {"url": as_data_url(subject.image, self._settings.max_side)}},
        ]
        asked = {
            "model": self._model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self._settings.max_tokens,
            "temperature": 0,
            "stream": False,
        }
        answer = self._ask("POST", "/chat/completions", asked)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._fault("answered in another form than chat servers do") from error
        return Description(text=_THOUGHTS.sub("", text if isinstance(text, str) else "").strip(" \n\"'"))

    def _only_model(self) -> str:
        listed = self._ask("GET", "/models", None)
        entries = listed.get("data") if isinstance(listed, dict) else None
        names = [str(entry.get("id")) for entry in entries or [] if isinstance(entry, dict)]
        if len(names) != 1:
            shown = ", ".join(names[:20]) or "none"
            raise ResourceError(
                "Which of the server's models shall be used is not said.",
                where=self._settings.address,
                fix=f"Give the model's name. The server has: {shown}.",
            )
        return names[0]

    def _ask(self, method: str, path: str, content: dict[str, Any] | None) -> Any:
        """One question, tried again while the server is busy or away."""
        for left in range(self._settings.retries, -1, -1):
            self._check_stop()
            try:
                with self._client.stream(method, f"{self._base}{path}", json=content) as response:
                    body = self._read(response)
                    if response.status_code == 200:
                        return self._parsed(response, body)
                    if response.status_code not in _BUSY or not left:
                        raise self._refusal(response.status_code, body)
            except httpx.TimeoutException as error:
                if not left:
                    seconds = self._settings.timeout_seconds
                    raise self._fault(f"did not answer within {seconds:g} seconds") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not left:
                    raise self._fault(f"cannot be reached ({error})") from error
            self._pause(self._settings.retries - left)
        raise AssertionError("unreachable")

    def _read(self, response: httpx.Response) -> bytes:
        body = b""
        for part in response.iter_bytes():
            self._check_stop()
            body += part
            if len(body) > _MAX_ANSWER_BYTES:
                raise self._fault("answers without end")
        return body

    def _parsed(self, response: httpx.Response, body: bytes) -> Any:
        try:
            return httpx.Response(200, content=body).json()
        except ValueError as error:
            raise self._fault("answered with something else than JSON") from error

    def _refusal(self, status: int, body: bytes) -> ResourceError:
        text = " ".join(body[:300].decode("utf-8", errors="replace").split())
        return self._fault(f"refused ({status}): {text}")

    def _fault(self, what: str) -> ResourceError:
        return ResourceError(
            f"The server at {self._settings.address} {what}.",
            fix="Check that it runs, its address, and that its model can look at pictures. What was captioned is kept.",
        )

    def _pause(self, tries: int) -> None:
        until = time.monotonic() + _PAUSE_SECONDS * 2**tries
        while time.monotonic() < until:
            self._check_stop()
            time.sleep(0.1)


def load(config: CaptionConfig, check_stop: Callable[[], None]) -> ServerCaptioner:
    """Ask for the model where none is named. Raises ResourceError: the server cannot be reached, or has several models."""
    return ServerCaptioner(config.server, config.model, config.wording.guide, check_stop)


def endpoint(address: str) -> str:
    """Where the interface begins: the address as it is given, with `/v1` where it has no path."""
    address = address.rstrip("/").removesuffix("/chat/completions")
    host = address.partition("://")[2]
    return address if "/" in host else f"{address}/v1"


def as_data_url(image: Image.Image, max_side: int) -> str:
    """A picture as JPEG inside a URL, no larger than `max_side` pixels a side."""
    small = image.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
