"""Groups of fields of the Dataset tab: how a data set is trained (the Train form begins with it), and fetching from addresses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.datasets import DatasetService
from app.tabs.dataset_page import news
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.fetch_job import start_fetch
from trainer.dataset.record import CLASS_PICTURES
from trainer.errors import Cancelled, DatasetError, error_from_dict
from trainer.events import Failed, Finished, Stage
from trainer.jobs import stop_run
from trainer.runs import find_run

_POLL_SECONDS = 0.5
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
                self._stop = gr.Button("Cancel", elem_id="dataset-fetch-stop", size="sm", min_width=90)
            self._state = gr.HTML("", elem_id="dataset-fetch-state", padding=False)
        self._run = gr.State("")

    def wire(self, offer: Callable[[str], Any], choice: gr.Dropdown, changed: gr.State) -> None:
        """Connect the buttons; `offer(name)` gives the list of data sets with one of them chosen."""
        quiet: dict[str, Any] = {"show_progress": "hidden"}
        self._start.click(
            handler(self._begin), [self._name, self._addresses], [self._run, self._state], trigger_mode="once", **quiet
        ).success(handler(self._follow), self._run, self._state, **quiet).success(
            handler(lambda name: (offer(name.strip()), news())), self._name, [choice, changed], **quiet
        )
        self._stop.click(handler(self._cancel), self._run, None, queue=False, **quiet)

    def _begin(self, name: str, addresses: str) -> tuple[str, str]:
        lines = [line.strip() for line in addresses.splitlines() if line.strip()]
        if not name.strip() or not lines:
            raise DatasetError("Give a data set and at least one address.", fix="Type both, an address a line.")
        return start_fetch(self._data, name.strip(), lines).id, "Fetching…"

    def _follow(self, run_id: str) -> Iterator[str]:
        run = find_run(self._data, run_id)
        while not run.state().is_over:
            stages = [event for event in run.tail_events() if isinstance(event, Stage)]
            if stages:
                yield f'<div role="status">{render.text(stages[-1].name)} {stages[-1].amount("/")}</div>'
            time.sleep(_POLL_SECONDS)
        final = run.final_event()
        if isinstance(final, Failed):
            raise error_from_dict(final.error)
        if not isinstance(final, Finished):
            raise Cancelled("Cancelled. What was fetched is kept: fetch again to go on.")
        failed = f", {final.result['failed']} could not be had (see Jobs)" if final.result["failed"] else ""
        yield f'<div role="status">{final.result["added"]} pictures added{failed}.</div>'

    def _cancel(self, run_id: str) -> None:
        if run_id:
            stop_run(find_run(self._data, run_id), self._data)
