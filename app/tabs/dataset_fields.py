"""Groups of fields of the Dataset tab: how a data set is trained (the Train form begins with it), and fetching from addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.datasets import DatasetService
from app.services.jobs import History, JobRow
from app.tabs.dataset_page import news, shown_after
from app.tabs.job_follower import JobFollower
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.fetch_job import start_fetch
from trainer.dataset.record import CLASS_PICTURES
from trainer.errors import DatasetError
from trainer.runs import RunState

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

    def empty(self) -> dict[Any, Any]:
        """As they are where no data set is open."""
        return {self._role: "", self._repeats: 1, self._weight: 1.0, self._prompt: ""}

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


class FetchFields:
    """An accordion with addresses of pictures and a button that fetches them. The job goes on where the page is closed."""

    def __init__(self, services: Services) -> None:
        self._data = services.data
        with gr.Accordion("Fetch from addresses", open=False, elem_id="dataset-fetch-open"):
            self._name = gr.Textbox(
                "",
                label="Data set",
                info="One of yours, or the name of a new one.",
                elem_id="dataset-fetch-name",
                max_length=100,
            )
            self._addresses = gr.Textbox(
                "",
                label="Addresses of pictures, one a line",
                info="Only these are asked, one after the other; what is no picture is named and left out.",
                lines=3,
                max_lines=8,
                elem_id="dataset-fetch-addresses",
            )
            with gr.Row():
                self._start = gr.Button("Fetch", variant="primary", elem_id="dataset-fetch", size="sm", min_width=90)
                self._stop = gr.Button("Cancel", visible=False, elem_id="dataset-fetch-stop", size="sm", min_width=90)
            self._state = gr.HTML("", elem_id="dataset-fetch-state", padding=False)
        self._job = JobFollower(services.jobs, self._state, self._stop, "It stops; what was fetched is kept.")

    def wire(self, offer: Callable[[str], Any], choice: gr.Dropdown, changed: gr.State) -> None:
        """Connect the buttons; `offer(name)` gives the list of data sets with one of them chosen."""
        self._start.click(
            handler(self._begin),
            [self._name, self._addresses],
            self._job.parts,
            trigger_mode="once",
            show_progress="hidden",
        )

        def ended(row: JobRow, history: History, chosen: str | None) -> dict[Any, Any]:
            if row.state is not RunState.FINISHED:
                kept = "What was fetched is kept: fetch again to go on."
                return {self._state: render.status(row, history) + f'<div class="hint">{kept}</div>'}
            failed = f", {history.result['failed']} could not be had" if history.result["failed"] else ""
            note(f"{history.result['added']} pictures added{failed}.")
            made = str(history.result["dataset"])
            shown = shown_after(made, chosen, is_new=bool(history.result["is_new"]))
            return {choice: offer(shown), **({changed: news()} if made == chosen else {})}

        self._job.wire(ended, [choice], [choice, changed])

    def _begin(self, name: str, addresses: str) -> dict[Any, Any]:
        lines = [line.strip() for line in addresses.splitlines() if line.strip()]
        if not name.strip() or not lines:
            raise DatasetError("Give a data set and at least one address.", fix="Type both, an address a line.")
        return self._job.follow(start_fetch(self._data, name.strip(), lines).id)
