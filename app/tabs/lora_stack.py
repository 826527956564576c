"""A stack of LoRAs (Generate, Tools): any number of rows, each with its switch, weights and place.

The state holds the truth. Widgets write into it as they change, and rows are drawn anew only when rows come, go or
move: redrawing on every change would take a slider from under the hand. Where there is a prompt, its tags and the rows
say the same (`app.services.stack_rows`).
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.generation import GenerationService
from app.services.stack_rows import Row, about, moved, new_row, with_value, without
from app.stack_shown import mark, shown_js
from trainer.units import size

__all__ = ["LoraStackEditor", "Row", "moved", "new_row", "with_value", "without"]
MIN_WEIGHT, MAX_WEIGHT = -2.0, 2.0
# Queued: the browser hears of a changed State from queued events only.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class LoraStackEditor:
    """The editor. `rows` is its state; `version` changes when the rows must be drawn anew.

    Args:
        service: the library.
        tab: where it stands.
        prompt: what trigger words are put into, and whose tags are the stack's; None for a stack without a prompt.
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
        self._steps: Any = None
        self.rows = gr.State([])
        self.version = gr.State(0)
        self.selected = gr.State("")
        self._shown = gr.JSON(visible=False)
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
        gr.render(inputs=[self.rows, self.version], triggers=triggers, show_progress="hidden")(self._draw)
        # Not `input`: a dropdown that takes free text fires it a second time when it is left.
        self.picker.select(
            handler(self._add), [self.picker, self.rows, self.version], [self.rows, self.version, self.picker], **_QUIET
        )

    def connect(self, steps: Any) -> None:
        """Let the rows follow what is typed in the prompt; `steps` is the form's number of sampling steps, which tags count in."""
        self._steps = steps
        if self._prompt is not None:
            self._prompt.input(
                handler(self._typed),
                [self._prompt, self.rows, self.version, *self._step_inputs()],
                [self.rows, self.version],
                trigger_mode="always_last",
                **_QUIET,
            )

    @property
    def shown_js(self) -> str:
        """What the browser brings along to an event that uses the stack: see `app.stack_shown`."""
        return shown_js(self._prefix, has_prompt=self._prompt is not None)

    @property
    def now(self) -> list[Any]:
        """The last inputs of an event that uses the stack outside of a form: what `with_shown` takes."""
        return [self.rows, self.version, self._shown]

    def now_js(self, num_before: int) -> str:
        """The script of such an event; `num_before` inputs come before `now`."""
        return f"(...all) => [...all.slice(0, {num_before + 2}), ({self.shown_js})()]"

    def _step_inputs(self) -> list[Any]:
        return [] if self._steps is None else [self._steps]

    def _typed(self, prompt: str, rows: list[Row], version: int, steps: Any = None) -> tuple[Any, Any]:
        """Typing in the prompt: the rows follow its tags."""
        if "<" not in prompt and not any(row.get("tag") for row in rows):
            return gr.skip(), gr.skip()
        new = self._service.rows_of_prompt(prompt, rows, steps)
        return (gr.skip(), gr.skip()) if new == rows else (new, version + 1)

    def change(self, function: Any, *, is_whole: bool = False) -> Any:
        """A handler `(value, rows) -> rows` of a widget as one that also brings the prompt's tags to say the same.

        Its inputs are the widget and `linked()`, its outputs `linked_outputs()`. With `is_whole`, tags that have no row
        are taken out of the prompt.
        """

        def changed(value: Any, rows: list[Row], prompt: str = "", steps: Any = None) -> Any:
            new = function(value, rows)
            if self._prompt is None:
                return new
            text = self._service.prompt_of_rows(prompt, new, steps, is_whole=is_whole) if "<" in prompt else prompt
            return new, (gr.skip() if text == prompt else text)

        return handler(changed)

    def linked(self) -> list[Any]:
        """What a handler of `change` gets after its widget."""
        return [self.rows] if self._prompt is None else [self.rows, self._prompt, *self._step_inputs()]

    def linked_outputs(self) -> list[Any]:
        """What a handler of `change` answers."""
        return [self.rows] if self._prompt is None else [self.rows, self._prompt]

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

    def _draw(self, rows: list[Row], version: int) -> None:
        for index, row in enumerate(rows):
            self._draw_row(row, index, version)

    def _draw_row(self, row: Row, index: int, version: int) -> None:
        row_id, prefix = row["id"], self._prefix
        with gr.Column(
            elem_classes=["lora-row", mark(row_id, version)], elem_id=f"{prefix}-row-{index}", min_width=200
        ):
            with gr.Row(equal_height=True):
                words = f" · {about(row)}" if about(row) else ""
                on = gr.Checkbox(
                    row["on"],
                    label=f"{row['name']}{words}",
                    interactive=True,
                    container=False,
                    elem_id=f"{prefix}-on-{index}",
                )
                more = self._button("⋯", f"more-{index}") if self._prompt is not None else None
                up, down = self._button("↑", f"up-{index}"), self._button("↓", f"down-{index}")
                off = self._button("✕", f"remove-{index}")
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
                self.change(lambda value, rows, key=key: with_value(rows, row_id, key, value)),
                [widget, *self.linked()],
                self.linked_outputs(),
                trigger_mode="always_last",
                **_QUIET,
            )
        change: dict[str, Any] = {"inputs": [self.rows, self.version], "outputs": [self.rows, self.version], **_QUIET}
        up.click(lambda rows, version: (moved(rows, row_id, -1), version + 1), **change)
        down.click(lambda rows, version: (moved(rows, row_id, 1), version + 1), **change)
        off.click(
            self.change(lambda _version, rows: without(rows, row_id), is_whole=True),
            [self.version, *self.linked()],
            self.linked_outputs(),
            **_QUIET,
        ).then(lambda version: version + 1, self.version, self.version, **_QUIET)
        if more is not None:
            more.click(lambda chosen: "" if chosen == row_id else row_id, self.selected, self.selected, **_QUIET)

    def _button(self, sign: str, name: str) -> gr.Button:
        return gr.Button(sign, size="sm", elem_classes=["small-button"], elem_id=f"{self._prefix}-{name}", min_width=38)

    def _slider(self, title: str, value: float, element: str) -> gr.Slider:
        low, high = min(MIN_WEIGHT, value), max(MAX_WEIGHT, value)
        # Without interactive=True sliders made while rendering come up disabled.
        return gr.Slider(
            low, high, value=value, step=0.05, label=title, interactive=True, elem_id=element, min_width=140
        )

    def _inserter(self, word: str) -> Any:
        def insert(prompt: str) -> str:
            if word in prompt:
                return prompt
            return f"{word}, {prompt}" if prompt.strip() else word

        return insert


def _choice_title(entry: Any) -> str:
    about = ", ".join(part for part in (entry.size_text, entry.base_model, size(entry.size_bytes)) if part)
    return f"{entry.name} ({about})"
