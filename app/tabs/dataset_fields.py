"""What the Dataset tab asks about how a data set is to be trained: its role, repeats and weight. The Train form begins with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.datasets import DatasetService
from app.tabs.dataset_page import news
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.record import CLASS_PICTURES

_ROLES = [("Pictures to learn from", ""), ("Class pictures (regularisation)", CLASS_PICTURES)]


class TrainingFields:
    """An accordion with the fields and a button that keeps them."""

    def __init__(self, service: DatasetService) -> None:
        self._service = service
        with gr.Accordion("How it is trained", open=False, elem_id="dataset-training-open"):
            self._role = gr.Dropdown(
                _ROLES,
                value="",
                label="Role",
                info="Class pictures show what a character is one of; they are chosen in the Train form as class pictures of your own.",
                elem_id="dataset-role",
                interactive=True,
            )
            with gr.Row():
                self._repeats = gr.Number(
                    1, label="Repeats", precision=0, minimum=1, maximum=1000, elem_id="dataset-repeats", min_width=90
                )
                self._weight = gr.Number(
                    1.0, label="Weight", minimum=0, maximum=10, elem_id="dataset-weight", min_width=90
                )
            self._prompt = gr.Textbox(
                "", label="Caption where there is none", elem_id="dataset-instance-prompt", max_length=2000
            )
            self._keep = gr.Button("Keep", size="sm", min_width=90, elem_id="dataset-training-keep")

    @property
    def parts(self) -> list[Any]:
        """Outputs of `show`."""
        return [self._role, self._repeats, self._weight, self._prompt]

    def show(self, info: DatasetInfo) -> dict[Any, Any]:
        """What the record says."""
        return {
            self._role: info.role,
            self._repeats: info.repeats,
            self._weight: info.weight,
            self._prompt: info.instance_prompt,
        }

    def wire(self, choice: gr.Dropdown, changed: gr.State) -> None:
        """Connect the button."""
        self._keep.click(handler(self._save), [choice, *self.parts], changed, show_progress="hidden")

    def _save(self, name: str | None, role: str, repeats: float | None, weight: float | None, prompt: str) -> Any:
        if not name:
            return gr.skip()
        settings = {
            "role": role or None,
            "repeats": None if repeats in (None, 1) else int(repeats),
            "weight": None if weight in (None, 1) else float(weight),
            "instance_prompt": " ".join(prompt.split()) or None,
        }
        if not self._service.store.set_training(name, settings):
            return gr.skip()
        note("Kept. The Train form begins with it when this data set is chosen.")
        return news()
