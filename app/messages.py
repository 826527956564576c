"""How errors reach the user: one wrapper around every handler, so that no handler needs its own and none shows a traceback."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import gradio as gr

from trainer.errors import Cancelled, InkwashError

log = logging.getLogger(__name__)
Handler = TypeVar("Handler", bound=Callable[..., Any])
_SHOWN_SECONDS = 12


def as_html(error: InkwashError) -> str:
    """An error as inert HTML: what is wrong, where, and what to do."""
    return html.escape(str(error)).replace("\n", "<br>")


def handler(function: Handler) -> Handler:
    """Make a function fit to be an event handler: what it raises becomes a message, never a traceback.

    An InkwashError is shown in full. Anything else is logged with its traceback and shown in one sentence. The
    outputs stay as they were, and `.success(...)` does not go on. Works on generators too.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            with _translated(function):
                yield from function(*args, **kwargs)

        return generator  # type: ignore[return-value]

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _translated(function):
            return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


@contextmanager
def _translated(function: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Cancelled as stop:
        raise _shown(as_html(stop), "Stopped") from stop
    except InkwashError as error:
        raise _shown(as_html(error), "That did not work") from error
    except Exception as error:
        log.exception("A handler failed: %s", function.__qualname__)
        text = f"{type(error).__name__}: {error}"
        raise _shown(
            f"Something went wrong that Inkwash did not expect ({html.escape(text[:300])}). "
            "The log in the data folder has the details.",
            "Unexpected error",
        ) from error


def _shown(message: str, title: str) -> gr.Error:
    return gr.Error(message, duration=_SHOWN_SECONDS, title=title, print_exception=False)


def note(message: str) -> None:
    """Say something in passing (a toast). Text, not HTML."""
    gr.Info(html.escape(message), duration=6)
