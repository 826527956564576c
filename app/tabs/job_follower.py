"""Following a job in a page: its status, a button that stops it, and a clock that ticks only while it works.

Which job is followed lives in the browser. The job goes on where the page is closed; whoever opens it again may follow it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.jobs import History, JobRow, JobService
from trainer.errors import RunError

_POLL_SECONDS = 1.0
_LOOKED_AT = 20
"""Of the newest jobs, where one that works is looked for."""
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

OnEnd = Callable[..., dict[Any, Any]]
"""Called with the job, what happened in it, and the values of the inputs; returns updates."""


class JobFollower:
    """One place of a page where a job is followed, one after another.

    Args:
        jobs: the jobs of the data folder.
        status: where its status is shown.
        stop: stops it; shown while there is something to stop.
        stopping: what is said when it is asked to stop.
        show: what its status is in HTML.
        seconds: how often it is looked at.
    """

    def __init__(
        self,
        jobs: JobService,
        status: gr.HTML,
        stop: gr.Button,
        stopping: str,
        show: Callable[[JobRow, History], str] = render.status,
        seconds: float = _POLL_SECONDS,
    ) -> None:
        self._jobs, self._status, self._stop, self._stopping, self._show = jobs, status, stop, stopping, show
        self.run = gr.State("")
        """Id of the job that is followed."""
        self._seen = gr.State([])
        self._clock = gr.Timer(seconds, active=False)

    @property
    def parts(self) -> list[Any]:
        """Outputs of `follow` and `forget`."""
        return [self.run, self._seen, self._clock, self._stop, self._status]

    def wire(self, on_end: OnEnd, inputs: Sequence[Any] = (), outputs: Sequence[Any] = ()) -> None:
        """Connect it; when a job is over, `on_end(row, history, *inputs)` says what else becomes of the page."""

        def poll(run_id: str, seen: list[Any], *values: Any) -> Any:
            return self._poll(run_id, seen, lambda row, history: on_end(row, history, *values))

        asked = [self.run, self._seen, *inputs]
        shown = list(dict.fromkeys([*self.parts, *outputs]))
        self._clock.tick(handler(poll), asked, shown, show_progress="hidden")
        self._stop.click(handler(self._end), self.run, None, **_QUIET)

    def follow(self, run_id: str) -> dict[Any, Any]:
        """Updates that make the page follow a job."""
        return {
            self.run: run_id,
            self._seen: [],
            self._clock: gr.Timer(active=True),
            self._stop: gr.update(visible=True),
            self._status: '<div class="hint" role="status">Waiting for its turn…</div>',
        }

    def forget(self) -> dict[Any, Any]:
        """Updates that make it follow nothing and show nothing."""
        return {self.run: "", self._seen: [], self._status: "", **self._rest()}

    def _rest(self) -> dict[Any, Any]:
        return {self._clock: gr.Timer(active=False), self._stop: gr.update(visible=False)}

    def working(self, kind: str, name: str | None) -> str:
        """Id of the newest job of a kind that works on a data set (None: on any) or waits to; empty where there is none."""
        newest = self._jobs.ids(kind)[:_LOOKED_AT]
        about = (run_id for run_id in newest if name is None or self.is_about(run_id, name))
        return next((run_id for run_id in about if not self._jobs.row(run_id).state.is_over), "")

    def is_about(self, run_id: str, name: str) -> bool:
        """Whether a job is about this data set; downloads are about any."""
        try:
            return self._jobs.run(run_id).config().get("dataset", name) == name
        except RunError:
            return False

    def _end(self, run_id: str) -> None:
        if run_id:
            self._jobs.stop(run_id)
            note(self._stopping)

    def _poll(self, run_id: str, seen: list[Any], on_end: Callable[[JobRow, History], dict[Any, Any]]) -> Any:
        if not run_id:
            return self._rest()
        try:
            row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        except RunError:  # it was deleted in the Jobs tab
            return self.forget()
        now = [run_id, row.state.value, history.num_events]
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {self._seen: now, self._status: self._show(row, history)}
        return {**updates, **self._rest(), **on_end(row, history)} if row.state.is_over else updates
