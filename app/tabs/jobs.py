"""The Jobs tab: everything that ran, runs or waits; what each did, said and left; and what can be asked of it."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler, note
from app.polling import Poll
from app.services.context import Services
from app.services.jobs import JobRow
from app.tabs.resumption import ResumptionRow
from trainer.jobs import JOBS
from trainer.runs import RunState
from trainer.units import duration

TITLE = "Jobs"
_HEADERS = ["Kind", "Title", "State", "Started", "Took", "Result"]
_POLL_SECONDS = 2.0
_MAX_ROWS = 300
_LOG_BYTES = 12000
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class JobsTab:
    """One page's Jobs tab."""

    def __init__(self, services: Services, links: Links) -> None:
        self._jobs = services.jobs
        self._links = links
        self._chosen = gr.State(None)
        self._ids = gr.State([])
        self._seen = gr.State({})
        gr.HTML(
            '<div class="hint">Choose a job to see what it did. One at a time has the device; downloads and LoRA tools go on beside it.</div>',
            padding=False,
        )
        self._table = gr.Dataframe(
            headers=_HEADERS,
            value=[],
            interactive=False,
            elem_id="jobs-table",
            elem_classes="row-table",
            max_height=340,
            show_label=False,
            column_widths=["110px", "200px", "110px", "170px", "90px", "560px"],
            buttons=[],
        )
        self._detail = gr.HTML(render.empty("No job is chosen."), elem_id="job-detail", padding=False)
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 90}
            self._cancel = gr.Button("Cancel", elem_id="job-cancel", **small)
            self._kill = gr.Button("End it by force", variant="stop", elem_id="job-kill", **small)
            self._resume = gr.Button("Resume", variant="primary", elem_id="job-resume", **small)
            self._retry = gr.Button("Retry as a new job", elem_id="job-retry", **small)
            self._open = gr.Button("Open in Train", elem_id="job-open", **small)
            self._delete = gr.Button("Delete", elem_id="job-delete", **small)
        self._going_on = ResumptionRow(self._jobs, "job")
        with gr.Row(visible=False, elem_id="job-delete-ask") as self._ask:
            gr.HTML("Move this job, with its samples and checkpoints, to the trash folder?", padding=False)
            self._delete_yes = gr.Button("Move to trash", variant="stop", size="sm", elem_id="job-delete-yes")
            self._delete_no = gr.Button("Keep it", size="sm", elem_id="job-delete-no")
        self._log = gr.Textbox(
            label="Log", lines=10, max_lines=18, interactive=False, elem_id="job-log", autoscroll=True, visible=False
        )
        self._wire()

    def _wire(self) -> None:
        buttons = [self._cancel, self._kill, self._resume, self._retry, self._open, self._delete]
        buttons += self._going_on.components
        links, shown = self._links, [self._table, self._ids, self._seen, self._detail, self._log, *buttons]
        clock, inputs = links.clock(_POLL_SECONDS), [self._chosen, self._seen]
        poll = Poll(links.page, clock, self._poll, inputs, shown, links.tab.select)
        poll.after(self._table.select(handler(self._choose), self._ids, [self._chosen, self._ask], **_QUIET))
        for button, action in ((self._cancel, self._stop), (self._kill, self._end), (self._resume, self._begin_again)):
            poll.after(button.click(handler(action), self._chosen, None, **_QUIET))
        self._going_on.wire(self._chosen, poll)
        poll.after(self._retry.click(handler(self._again), self._chosen, self._chosen, **_QUIET))
        self._open.click(
            lambda run_id: send(run_id, "train"),
            self._chosen,
            [self._links.run_for_train, self._links.tabs],
            show_progress="hidden",
        )
        self._delete.click(lambda: gr.update(visible=True), None, self._ask, **_QUIET)
        self._delete_no.click(lambda: gr.update(visible=False), None, self._ask, **_QUIET)
        poll.after(self._delete_yes.click(handler(self._trash), self._chosen, [self._chosen, self._ask], **_QUIET))

    def _poll(self, chosen: str | None, seen: dict[str, Any]) -> Any:
        rows = self._jobs.rows()[:_MAX_ROWS]
        by_id = {row.id: row for row in rows}
        row = by_id.get(chosen or "")
        table = [_cells(entry) for entry in rows]
        log = self._jobs.run(row.id).log_tail(_LOG_BYTES) if row else ""
        can_kill = row is not None and row.state.is_active and self._jobs.can_kill(row.id)
        events = self._jobs.history(row.id).num_events if row else 0
        now = {
            "table": [[entry.id, *cells] for entry, cells in zip(rows, table, strict=True)],
            "job": [chosen, row.state.value if row else "", events, can_kill],
            "log": [chosen, hash(log)],
        }
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {self._seen: now}
        if now["table"] != seen.get("table"):
            updates |= {self._table: gr.update(value=table), self._ids: [entry.id for entry in rows]}
        if now["job"] != seen.get("job"):
            updates |= self._about(row, can_kill)
        if now["log"] != seen.get("log"):
            updates[self._log] = gr.update(value=log, visible=row is not None)
        return updates

    def _about(self, row: JobRow | None, can_kill: bool) -> dict[Any, Any]:
        state = row.state if row else None
        is_open = state is RunState.QUEUED or (state is not None and state.is_active)
        return {
            self._detail: self._text(row) if row else render.empty("No job is chosen."),
            self._cancel: gr.update(visible=is_open),
            self._kill: gr.update(visible=can_kill),
            self._resume: gr.update(visible=row is not None and row.is_resumable),
            self._retry: gr.update(visible=state is not None and state.is_over),
            self._open: gr.update(visible=row is not None and row.kind == "train"),
            self._delete: gr.update(visible=state is not None and state.is_over),
            **self._going_on.updates(row),
        }

    def _text(self, row: JobRow) -> str:
        history = self._jobs.history(row.id)
        result = render.definitions((key, _short(value)) for key, value in history.result.items())
        folder = f'<div class="hint">Folder: {render.text(history.run.folder)}</div>'
        return render.status(row, history) + result + folder

    def _choose(self, ids: list[str], event: gr.SelectData) -> tuple[Any, Any]:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not 0 <= index < len(ids):
            return gr.skip(), gr.skip()
        return ids[index], gr.update(visible=False)

    def _stop(self, run_id: str) -> None:
        self._jobs.stop(run_id)
        note("It stops as soon as it can and keeps what it has.")

    def _end(self, run_id: str) -> None:
        self._jobs.kill(run_id)

    def _begin_again(self, run_id: str) -> None:
        self._jobs.resume(run_id)
        note("The run goes on from where it was.")

    def _again(self, run_id: str) -> str:
        new = self._jobs.retry(run_id)
        note("A new job with the same settings is in the queue.")
        return new

    def _trash(self, run_id: str) -> tuple[Any, Any]:
        target = self._jobs.delete(run_id)
        note(f"Moved to {target}")
        return None, gr.update(visible=False)


def _cells(row: JobRow) -> list[str]:
    took = duration(row.ended - row.started) if row.started and row.ended else ""
    kind = JOBS[row.kind].title if row.kind in JOBS else row.kind
    started = render.clock(row.started) or time.strftime("made %Y-%m-%d %H:%M", time.localtime(row.created))
    return [kind, row.title, render.STATE_TITLES[row.state], started, took, row.result]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value[:8]) + (" …" if len(value) > 8 else "")
    return str(value)


def build(services: Services, links: Links) -> None:
    """Lay out and wire the tab."""
    JobsTab(services, links)
