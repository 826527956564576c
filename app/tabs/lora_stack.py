"""A stack of LoRAs (Generate, Tools): any number of rows, each with its switch, weights and place.

The state holds the truth. Widgets write into it as they change, and rows are drawn anew only when rows come, go or
move: redrawing on every change would take a slider from under the hand.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.generation import GenerationService
from trainer.units import size

MIN_WEIGHT, MAX_WEIGHT = -2.0, 2.0
# Queued: the browser hears of a changed State from queued events only.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Row = dict[str, Any]


def new_row(name: str, unet: float = 1.0, text: float = 1.0, on: bool = True) -> Row:
    """A row of the stack."""
    return {"id": secrets.token_hex(4), "name": name, "unet": unet, "text": text, "on": on}


def with_value(rows: Sequence[Row], row_id: str, key: str, value: Any) -> list[Row]:
    """The stack with one value of one row changed."""
    return [{**row, key: value} if row["id"] == row_id else row for row in rows]


def moved(rows: Sequence[Row], row_id: str, by: int) -> list[Row]:
    """The stack with one row moved up (-1) or down (1)."""
    result = list(rows)
    index = next((i for i, row in enumerate(result) if row["id"] == row_id), -1)
    target = index + by
    if index >= 0 and 0 <= target < len(result):
        result[index], result[target] = result[target], result[index]
    return result


def without(rows: Sequence[Row], row_id: str) -> list[Row]:
    """The stack with one row taken off."""
    return [row for row in rows if row["id"] != row_id]


class LoraStackEditor:
    """The editor. `rows` is its state; `version` changes when the rows must be drawn anew.

    Args:
        service: the library.
        tab: where it stands.
        prompt: what trigger words are put into; None for a stack without a prompt.
        prefix: of the HTML ids.
        about: what stands below the label.
    """

    def __init__(
        self,
        service: GenerationService,
        tab: gr.Tab,
        prompt: gr.Textbox | None = None,
        prefix: str = "lora",
        about: str = "Choose one of the library to put it on the stack. Order does not change the picture.",
    ) -> None:
        self._service = service
        self._prompt = prompt
        self._prefix = prefix
        self.rows = gr.State([])
        self.version = gr.State(0)
        with gr.Row(equal_height=True):
            self.picker = gr.Dropdown(
                [],
                label="LoRAs",
                info=about,
                elem_id=f"{prefix}-add",
                interactive=True,
                value=None,
            )
        # Also when the tab is opened: what was drawn before the browser had made the tab is lost.
        triggers = [self.version.change, tab.select]
        gr.render(inputs=[self.rows], triggers=triggers, show_progress="hidden")(self._draw)
        # Not `input`: a dropdown that takes free text fires it a second time when it is left.
        self.picker.select(
            handler(self._add), [self.picker, self.rows, self.version], [self.rows, self.version, self.picker], **_QUIET
        )

    def choices(self) -> Any:
        """An update of the list of the library."""
        return gr.update(choices=[(_choice_title(entry), entry.name) for entry in self._service.loras()])

    def _add(self, name: str | None, rows: list[Row], version: int) -> tuple[Any, Any, Any]:
        if not name:
            return gr.skip(), gr.skip(), gr.skip()
        found = self._service.find_lora(name)
        if found is None:
            note(f"There is no LoRA '{name}' in the library.")
            return gr.skip(), gr.skip(), gr.update(value=None)
        return [*rows, new_row(found)], version + 1, gr.update(value=None)

    def _draw(self, rows: list[Row]) -> None:
        for index, row in enumerate(rows):
            self._draw_row(row, index)

    def _draw_row(self, row: Row, index: int) -> None:
        row_id, prefix = row["id"], self._prefix
        with gr.Column(elem_classes=["lora-row"], elem_id=f"{prefix}-row-{index}", min_width=200):
            with gr.Row(equal_height=True):
                on = gr.Checkbox(
                    row["on"], label=row["name"], interactive=True, container=False, elem_id=f"{prefix}-on-{index}"
                )
                up = gr.Button(
                    "↑", size="sm", elem_classes=["small-button"], elem_id=f"{prefix}-up-{index}", min_width=38
                )
                down = gr.Button(
                    "↓", size="sm", elem_classes=["small-button"], elem_id=f"{prefix}-down-{index}", min_width=38
                )
                off = gr.Button(
                    "✕", size="sm", elem_classes=["small-button"], elem_id=f"{prefix}-remove-{index}", min_width=38
                )
            with gr.Row(equal_height=True):
                unet = self._slider("UNet weight", row["unet"], f"{prefix}-unet-{index}")
                text = self._slider("Text-encoder weight", row["text"], f"{prefix}-text-{index}")
            words = self._service.trigger_words(row["name"]) if self._prompt is not None else ()
            if words:
                with gr.Row():
                    for number, word in enumerate(words[:6]):
                        insert = gr.Button(
                            f"+ {word[:60]}", size="sm", min_width=60, elem_id=f"{prefix}-word-{index}-{number}"
                        )
                        insert.click(self._inserter(word), self._prompt, self._prompt, **_QUIET)
        for widget, key in ((on, "on"), (unet, "unet"), (text, "text")):
            widget.change(
                self._setter(row_id, key), [widget, self.rows], self.rows, trigger_mode="always_last", **_QUIET
            )
        change: dict[str, Any] = {"inputs": [self.rows, self.version], "outputs": [self.rows, self.version], **_QUIET}
        up.click(lambda rows, version: (moved(rows, row_id, -1), version + 1), **change)
        down.click(lambda rows, version: (moved(rows, row_id, 1), version + 1), **change)
        off.click(lambda rows, version: (without(rows, row_id), version + 1), **change)

    def _slider(self, title: str, value: float, element: str) -> gr.Slider:
        low, high = min(MIN_WEIGHT, value), max(MAX_WEIGHT, value)
        # Without interactive=True sliders made while rendering come up disabled.
        return gr.Slider(
            low, high, value=value, step=0.05, label=title, interactive=True, elem_id=element, min_width=140
        )

    def _setter(self, row_id: str, key: str) -> Any:
        return handler(lambda value, rows: with_value(rows, row_id, key, value))

    def _inserter(self, word: str) -> Any:
        def insert(prompt: str) -> str:
            if word in prompt:
                return prompt
            return f"{word}, {prompt}" if prompt.strip() else word

        return insert


def _choice_title(entry: Any) -> str:
    about = ", ".join(part for part in (entry.size_text, entry.base_model, size(entry.size_bytes)) if part)
    return f"{entry.name} ({about})"
