"""Looking at what goes on, in one event, however it came about that one looks.

Two events that answer to the same components must not be under way at once: a queued one (a button's) and one outside of the
queue (a clock's) come over two connections, so that what was seen first can be drawn last. The page would then show buttons of
a state that has passed, for good, since the server believes that it has told of the newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app.messages import handler


class Poll:
    """A function that tells what has changed. It runs when the clock ticks and when it is called for, never twice at once."""

    def __init__(
        self,
        page: gr.Blocks,
        clock: gr.Timer,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *others: Callable[..., Any],
    ) -> None:
        """
        Args:
            page: its loading is an occasion, too.
            clock: ticks while something may happen.
            others: more events at which to look, as `button.click`.
        """
        self._bell = gr.Number(visible=False)
        gr.on(
            [clock.tick, page.load, self._bell.change, *others],
            handler(function),
            list(inputs),
            list(outputs),
            trigger_mode="once",  # a call that comes while one looks is answered by the next tick
            queue=False,
            show_progress="hidden",
        )

    def after(self, *events: Any) -> None:
        """Look at once when an event has done its work, as `poll.after(button.click(...))`."""
        for event in events:
            event.success(None, None, self._bell, js="() => performance.now()", queue=False, show_progress="hidden")
