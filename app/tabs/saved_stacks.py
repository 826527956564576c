"""Stacks of LoRAs saved under a name, below the stack: save, load, delete, share as a file and take one in."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.generation import GenerationService
from app.services.stack_rows import Row, new_row, row_from
from app.stack_shown import with_shown
from trainer.stacks import SavedStack

_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class SavedStacks:
    """The saved stacks.

    Args:
        service: the library.
        editor: the stack that is saved and filled; a LoraStackEditor with a prompt.
    """

    def __init__(self, service: GenerationService, editor: Any) -> None:
        self._service = service
        self._editor = editor
        with gr.Accordion("Saved stacks", open=False, elem_id="stack-saved"):
            with gr.Row(equal_height=True):
                self.picker = gr.Dropdown(
                    [], value=None, label="Saved", elem_id="stack-picker", interactive=True, min_width=150
                )
                self._name = gr.Textbox(
                    label="Save this one as", elem_id="stack-name", interactive=True, min_width=150, max_lines=1
                )
            with gr.Row():
                self._load = self._button("Load", "stack-load")
                self._save = self._button("Save", "stack-save")
                self._delete = self._button("Delete", "stack-delete")
                self._share = gr.DownloadButton("Share", size="sm", elem_id="stack-share", min_width=60)
                self._take = gr.UploadButton(
                    "Open a file", size="sm", file_types=[".json"], elem_id="stack-import", min_width=60
                )

    def wire(self) -> None:
        """Connect the buttons; after the editor knows the form's number of steps."""
        editor = self._editor
        filled: dict[str, Any] = {
            "outputs": [self.picker, editor.version, *editor.linked_outputs()],
            **_QUIET,
        }
        self._load.click(handler(self._fill), [self.picker, editor.version, *editor.linked()], **filled)
        self._take.upload(handler(self._import), [self._take, editor.version, *editor.linked()], **filled)
        self._save.click(
            handler(self._keep),
            [self._name, *editor.now],
            [self.picker, self._name],
            js=editor.now_js(1),
            **_QUIET,
        )
        self._delete.click(handler(self._remove), self.picker, self.picker, **_QUIET)
        # What the button gives is made known when a stack is chosen.
        self.picker.change(handler(self._file), self.picker, self._share, **_QUIET)

    def choices(self) -> Any:
        """An update of the list."""
        return gr.update(choices=self._service.stacks())

    def _button(self, text: str, element: str) -> gr.Button:
        return gr.Button(text, size="sm", elem_id=element, min_width=60)

    def _fill(
        self, name: str | None, version: int, rows: list[Row], prompt: str = "", steps: Any = None
    ) -> tuple[Any, ...]:
        if not name:
            note("Choose a saved stack first.")
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return (gr.skip(), *self._show(self._service.load_stack(name), version, prompt, steps))

    def _import(
        self, path: str | None, version: int, rows: list[Row], prompt: str = "", steps: Any = None
    ) -> tuple[Any, ...]:
        if not path:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        stack = self._service.import_stack(Path(path))
        listed = gr.update(choices=self._service.stacks(), value=stack.name)
        return (listed, *self._show(stack, version, prompt, steps))

    def _show(self, stack: SavedStack, version: int, prompt: str, steps: Any) -> tuple[Any, ...]:
        """The stack in the editor; tags of what was there before leave the prompt."""
        if stack.missing:
            gr.Warning(f"Not in the library, so left off: {html.escape(', '.join(stack.missing))}", duration=10)
        for sentence in stack.notes:
            note(html.escape(sentence))
        rows = [new_row(**row_from(lora.model_dump(mode="json"))) for lora in stack.loras]
        text = self._service.prompt_of_rows(prompt, rows, steps, is_whole=True)
        return version + 1, rows, (gr.skip() if text == prompt else text)

    def _keep(self, name: str, rows: list[Row], version: int, shown: Any) -> tuple[Any, Any]:
        taken = self._service.save_stack(name, with_shown(rows, version, shown))
        note(f"The stack is saved as {html.escape(taken)}.")
        return gr.update(choices=self._service.stacks(), value=taken), ""

    def _remove(self, name: str | None) -> Any:
        if not name:
            note("Choose a saved stack first.")
            return gr.skip()
        self._service.delete_stack(name)
        note(f"The stack {html.escape(name)} is in the trash.")
        return gr.update(choices=self._service.stacks(), value=None)

    def _file(self, name: str | None) -> Any:
        return gr.update(value=str(self._service.stack_file(name)) if name else None)
