"""Where the Dataset tab shows how far pictures are brought in, whichever of its buttons began it, with a button that cancels it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app import render
from app.messages import note
from app.services.context import Services
from app.services.jobs import History, JobRow
from app.tabs.dataset_page import news, note_left_out, shown_after
from app.tabs.job_follower import JobFollower
from trainer.errors import DatasetError, RunError
from trainer.runs import RunState

_KINDS = ("import", "restore")
_POLL_SECONDS = 0.4
"""A few pictures are there in a second or two: whoever waits for them shall not wait for the clock."""
_DOUBLE_CLICK_SECONDS = 1.0
"""Asked for the same again so soon, the first click was a double one."""


class Bringing:
    """The place of a page where one import after another is followed."""

    def __init__(self, services: Services) -> None:
        self._jobs = services.jobs
        status = gr.HTML("", elem_id="dataset-import-state", padding=False)
        cancel = gr.Button(
            "Cancel", visible=False, variant="stop", elem_id="dataset-import-stop", size="sm", min_width=90
        )
        said = "It stops; nothing of it is kept."
        self._status, self._job = status, JobFollower(services.jobs, status, cancel, said, seconds=_POLL_SECONDS)
        self._fields: dict[str, tuple[gr.Textbox | None, Sequence[Any]]] = {}

    @property
    def run(self) -> gr.State:
        """Id of the job that is followed: an input of what begins another."""
        return self._job.run

    @property
    def parts(self) -> list[Any]:
        """Outputs of `begin` and `find`."""
        return self._job.parts

    def empties(self, use: str, name: gr.Textbox | None, *others: Any) -> None:
        """Empty fields when a job went well: "new" and "copy" where `name` still is the name of what was made; or "added"."""
        self._fields[use] = (name, others)

    def begin(self, followed: str, start: Callable[[], str], made: str = "") -> dict[Any, Any]:
        """Updates that follow the job that `start` begins, which makes the data set `made` or adds to one.

        Raises DatasetError: one goes on in this page. Of a double click, which asks for the same set again, nothing is said.
        """
        if self._works(followed):
            is_young = time.time() - self._jobs.row(followed).created < _DOUBLE_CLICK_SECONDS
            if made and is_young and self._use(followed)[1].split() == made.split():
                return {}
            raise DatasetError(
                "Pictures are being brought in already.",
                fix="Wait until they are there, or cancel that, then try again.",
            )
        return self._job.follow(start())

    def find(self, followed: str) -> dict[Any, Any]:
        """Updates that follow a job which goes on and was begun before the page was loaded, or in another one."""
        if self._works(followed):
            return {}
        found = next((run_id for kind in _KINDS if (run_id := self._job.working(kind, None))), "")
        return self._job.follow(found) if found else {}

    def _works(self, run_id: str) -> bool:
        try:
            return bool(run_id) and not self._jobs.row(run_id).state.is_over
        except RunError:  # it was deleted in the Jobs tab
            return False

    def wire(self, offer: Callable[[str], Any], choice: gr.Dropdown, changed: gr.State) -> None:
        """Connect it; `offer(name)` gives the list of data sets with one of them chosen."""
        named = {use: name for use, (name, _) in self._fields.items() if name is not None}

        def ended(row: JobRow, history: History, chosen: str | None, *names: str) -> dict[Any, Any]:
            if row.state is not RunState.FINISHED:
                return {self._status: _why(row, history)}
            use, wanted = self._use(row.id)
            made = str(history.result["datasets"][0])
            shown = shown_after(made, chosen, is_new=use != "added")
            updates: dict[Any, Any] = {self._status: "", choice: offer(shown)}
            if made == chosen:
                updates[changed] = news()
            name, others = self._fields.get(use, (None, ()))
            typed = dict(zip(named, names, strict=True)).get(use, wanted)
            if typed.split() == wanted.split():  # else the next one is being prepared
                updates |= {field: _nothing(field) for field in ([name] if name else []) + list(others)}
            _tell(row, history)
            return updates

        emptied = [field for name, others in self._fields.values() for field in (name, *others) if field is not None]
        self._job.wire(ended, [choice, *named.values()], [choice, changed, *emptied])

    def _use(self, run_id: str) -> tuple[str, str]:
        config = self._jobs.run(run_id).config()
        if "new_name" in config:
            return "copy", config["new_name"]
        return ("new" if config["is_new"] else "added"), config["dataset"]


def _nothing(field: Any) -> Any:
    return None if isinstance(field, gr.File) else ""


def _why(row: JobRow, history: History) -> str:
    if row.state is RunState.STOPPED:
        return '<div class="hint" role="status">Cancelled: nothing of it was kept.</div>'
    return render.status(row, history)


def _tell(row: JobRow, history: History) -> None:
    result = history.result
    note(str(result["summary"]))
    number = int(result["num_left_out"])
    head = f"Not brought back ({number})" if row.kind == "restore" else "Left out"
    note_left_out(result["left_out"], number, head)
