"""What a row of the stack has beside its weights: blocks and sampling steps, for one row at a time below the stack."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.generation import GenerationService
from app.services.stack_rows import Row, find_row, with_tag, with_value, without_tag
from app.stack_shown import SETTINGS_ID, mark
from trainer.blocks import PRESETS

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_ALL = "ALL"


class RowSettings:
    """The panel. It shows the row whose id `selected` holds, and nothing for an empty one.

    Args:
        service: the library.
        editor: the stack whose rows it sets; a LoraStackEditor with a prompt.
    """

    def __init__(self, service: GenerationService, editor: Any) -> None:
        self._service = service
        self._editor = editor
        with gr.Column(visible=False, elem_classes=["lora-row"], elem_id=SETTINGS_ID, min_width=200) as self.panel:
            self._title = gr.HTML("", padding=False)
            self._blocks = gr.Dropdown(
                list(PRESETS),
                value=_ALL,
                allow_custom_value=True,
                label="Block weights",
                info="A preset, 12, 17, 20 or 26 numbers, or blocks by name: down1:0.5,mid:0",
                elem_id="lora-blocks",
                interactive=True,
            )
            with gr.Row(equal_height=True):
                self._start = self._share("From this share of the steps", 0.0, "lora-start")
                self._end = self._share("To this share of the steps", 1.0, "lora-end")
            with gr.Row():
                self._tag = gr.Checkbox(False, label="In the prompt, as a tag", elem_id="lora-tag", interactive=True)

    def wire(self) -> None:
        """Connect the panel; after the editor knows the form's number of steps."""
        editor = self._editor
        shown = [self.panel, self._title, self._blocks, self._start, self._end, self._tag]
        gr.on(
            [editor.selected.change, editor.version.change],
            handler(self._show),
            [editor.selected, editor.rows, editor.version],
            shown,
            **_QUIET,
        )
        for widget, event, key in (
            (self._blocks, self._blocks.change, "blocks"),
            (self._start, self._start.change, "start"),
            (self._end, self._end.change, "end"),
        ):
            event(
                self._setter(key),
                [widget, editor.selected, editor.version, *editor.linked()],
                [editor.version, *editor.linked_outputs()],
                trigger_mode="always_last",
                **_QUIET,
            )
        self._tag.input(
            handler(self._put_into_prompt),
            [self._tag, editor.selected, editor.version, *editor.linked()],
            [editor.version, *editor.linked_outputs()],
            **_QUIET,
        )

    def _share(self, title: str, value: float, element: str) -> gr.Slider:
        return gr.Slider(
            0.0, 1.0, value=value, step=0.05, label=title, interactive=True, elem_id=element, min_width=140
        )

    def _show(self, selected: str, rows: list[Row], version: int) -> tuple[Any, ...]:
        row = find_row(rows, selected)
        if row is None:
            return gr.update(visible=False), *[gr.skip()] * 5
        title = f'<div class="name {mark(selected, version)}">{render.text(row["name"])}</div>'
        values = row["blocks"] or _ALL, row["start"], row["end"], bool(row["tag"])
        return gr.update(visible=True), title, *values

    def _setter(self, key: str) -> Any:
        def change(value: Any, selected: str, version: int, rows: list[Row], prompt: str, steps: Any = None) -> Any:
            row = find_row(rows, selected)
            if key == "blocks":
                value = "" if str(value or "").strip().upper() == _ALL else str(value or "").strip()
            if row is None or row[key] == value:
                return gr.skip(), gr.skip(), gr.skip()
            new = with_value(rows, selected, key, value)
            text = self._service.prompt_of_rows(prompt, new, steps)
            return version + 1, new, (gr.skip() if text == prompt else text)

        return handler(change)

    def _put_into_prompt(
        self, is_wanted: bool, selected: str, version: int, rows: list[Row], prompt: str, steps: Any = None
    ) -> Any:
        row = find_row(rows, selected)
        if row is None or bool(row["tag"]) == is_wanted:
            return gr.skip(), gr.skip(), gr.skip()
        if not is_wanted:
            new = without_tag(rows, selected)
            return version + 1, new, self._service.prompt_of_rows(prompt, new, steps, is_whole=True)
        text = with_tag(prompt, row)
        if text is None:
            note("A name with a colon or an angle bracket cannot stand in a tag.")
            return version + 1, gr.skip(), gr.skip()
        return version + 1, with_value(rows, selected, "tag", "shown"), text
