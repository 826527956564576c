"""Turning the pages of a list: two buttons, and between them which page it is. Hidden where there is only one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app.messages import handler

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}


class Pager:
    """The row below a list. Which page is shown, from 0, is kept by whoever shows it."""

    def __init__(self, prefix: str) -> None:
        with gr.Row(visible=False, elem_id=f"{prefix}-pager") as self._row:
            self._back = gr.Button("← Page", elem_id=f"{prefix}-page-back", **_SMALL)
            self._text = gr.HTML("", padding=False)
            self._on = gr.Button("Page →", elem_id=f"{prefix}-page-on", **_SMALL)

    @property
    def parts(self) -> list[Any]:
        """Outputs of `show`."""
        return [self._row, self._text]

    def show(self, page: int, num_pages: int) -> dict[Any, Any]:
        """Updates for a page of so many."""
        return {
            self._row: gr.update(visible=num_pages > 1),
            self._text: f'<div class="page-text">{page + 1} of {num_pages}</div>',
        }

    def wire(self, turn: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **options: Any) -> None:
        """Connect the buttons to `turn(*inputs, step)`, where the step is -1 or 1."""
        for button, step in ((self._back, -1), (self._on, 1)):
            button.click(
                handler(lambda *values, step=step: turn(*values, step)), list(inputs), list(outputs), **options
            )
