"""One training run, followed: state, loss chart, samples, requests and result. Everything is read from the run's folder,
so a refresh, a second tab and a restart of the app all show the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gradio as gr

from app import render
from app.links import Letter, Links, send
from app.messages import handler, note
from app.polling import Poll
from app.services.context import Services
from app.services.jobs import History, JobRow
from app.tabs.resumption import ResumptionRow
from app.tabs.run_choice import RunChoice
from trainer.errors import RunError
from trainer.files import is_inside
from trainer.runs import RunState
from trainer.units import size

_POLL_SECONDS = 1.0
_MAX_LISTED = 100
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class RunView(RunChoice):
    """The right side of the Train tab."""

    def __init__(self, services: Services, links: Links) -> None:
        self._jobs = services.jobs
        self._links = links
        self.chosen = gr.State(None)
        self._seen = gr.State({})
        self.picker = gr.Dropdown([], label="Run", elem_id="run-picker", interactive=True, allow_custom_value=True)
        self._status = gr.HTML(render.empty("No run yet. Start one on the left."), elem_id="run-status", padding=False)
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 90}
            self._stop = gr.Button("Stop and save", elem_id="run-stop", **small)
            self._save = gr.Button("Save now", elem_id="run-save", **small)
            self._sample = gr.Button("Sample now", elem_id="run-sample", **small)
            self._resume = gr.Button("Resume", variant="primary", elem_id="run-resume", **small)
            self._kill = gr.Button("End it by force", variant="stop", elem_id="run-kill", **small)
        self._going_on = ResumptionRow(self._jobs, "run")
        self._result = gr.HTML("", elem_id="run-result", padding=False)
        with gr.Row():
            self._download = gr.DownloadButton(
                "Download the LoRA", variant="primary", elem_id="run-download", visible=False, size="sm"
            )
            self._try = gr.Button("Try it in Generate", elem_id="run-try", visible=False, size="sm")
        gr.HTML('<div class="section-title">Loss</div>', padding=False)
        self._chart = gr.HTML("", elem_id="run-chart", padding=False)
        gr.HTML('<div class="section-title">Samples</div>', padding=False)
        self._samples = gr.HTML("", elem_id="run-samples", padding=False)
        buttons = [self._stop, self._save, self._sample, self._resume, self._kill, self._download, self._try]
        buttons += self._going_on.components
        self._shown = [
            *(self.chosen, self.picker, self._seen, self._status, self._result, self._chart, self._samples),
            *buttons,
        ]
        self._wire()

    def _wire(self) -> None:
        poll = self.poll = Poll(
            self._links.page, self._links.clock(_POLL_SECONDS), self._poll, [self.chosen, self._seen], self._shown
        )
        poll.after(
            self.picker.input(lambda run_id: run_id, self.picker, self.chosen, **_QUIET),
            self._links.run_for_train.change(
                handler(self._receive), self._links.run_for_train, [self.chosen, self.picker], **_QUIET
            ),
        )
        actions = [
            (self._stop, self._ask_stop),
            (self._save, self._ask_save),
            (self._sample, self._ask_sample),
            (self._resume, self._begin_again),
            (self._kill, self._end),
        ]
        for button, action in actions:
            poll.after(button.click(handler(action), self.chosen, None, **_QUIET))
        self._going_on.wire(self.chosen, poll)
        self._try.click(
            handler(self._send_lora),
            self.chosen,
            [self._links.lora_for_generate, self._links.tabs],
            show_progress="hidden",
        )

    def _receive(self, letter: Letter | None) -> tuple[Any, Any]:
        if not letter:
            return gr.skip(), gr.skip()
        run_id = Letter(*letter).content
        return run_id, gr.update(choices=self._choices(), value=run_id)

    def _choices(self) -> list[tuple[str, str]]:
        return [(self._choice_title(run_id), run_id) for run_id in self._jobs.ids("train")[:_MAX_LISTED]]

    def _choice_title(self, run_id: str) -> str:
        about = self._jobs.info(run_id)
        return f"{about.title} · {time.strftime('%Y-%m-%d %H:%M', time.localtime(about.created))}"

    def _poll(self, chosen: str | None, seen: dict[str, Any]) -> Any:
        ids = self._jobs.ids("train")
        run_id = chosen if chosen in ids else self._jobs.newest("train")
        if run_id is None:
            return gr.skip() if seen.get("run") == "none" else self._nothing()
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        can_kill = row.state.is_active and self._jobs.can_kill(run_id)
        now = {
            "list": ids[:_MAX_LISTED],
            "run": [run_id, row.state.value, history.num_events, can_kill],
            "chart": [run_id, len(history.losses), history.losses[-1:], len(history.validations)],
            "samples": [run_id, len(history.samples), max(history.samples, default=None)],
        }
        if now == seen:
            return gr.skip()
        changed = {key for key in now if now[key] != seen.get(key)}
        updates: dict[Any, Any] = {self._seen: now, **self.chosen_after(chosen, run_id, is_list_new="list" in changed)}
        if "run" in changed:
            updates |= {self._status: render.status(row, history), **self._controls(row, history, can_kill)}
        if "chart" in changed:
            updates[self._chart] = render.loss_chart(history)
        if "samples" in changed:
            updates[self._samples] = render.sample_grid(history)
        return updates

    def _nothing(self) -> dict[Any, Any]:
        hidden = [self._stop, self._save, self._sample, self._resume, self._kill, self._download, self._try]
        return {
            **{button: gr.update(visible=False) for button in hidden},
            **self._going_on.updates(None),
            self._seen: {"run": "none"},
            self.picker: gr.update(choices=[], value=None),
            self._status: render.empty("No run yet. Start one on the left."),
            self._result: "",
            self._chart: "",
            self._samples: "",
        }

    def _controls(self, row: JobRow, history: History, can_kill: bool) -> dict[Any, Any]:
        is_waiting = row.state is RunState.QUEUED
        is_working = row.state is RunState.RUNNING
        lora = lora_file(history)
        about = f'<div class="hint">LoRA file: {render.text(lora)} ({size(lora.stat().st_size)})</div>' if lora else ""
        if history.lora and history.lora.note:
            about += f'<div class="hint">{render.text(history.lora.note)}</div>'
        return {
            self._stop: gr.update(
                visible=is_waiting or row.state.is_active,
                value="Take out of the queue" if is_waiting else "Stop and save",
            ),
            self._save: gr.update(visible=is_working),
            self._sample: gr.update(visible=is_working),
            self._resume: gr.update(visible=row.is_resumable),
            self._kill: gr.update(visible=can_kill),
            self._result: about,
            self._download: gr.update(visible=lora is not None, value=str(lora) if lora else None),
            self._try: gr.update(visible=lora is not None),
            **self._going_on.updates(row),
        }

    def _ask_stop(self, run_id: str) -> None:
        self._jobs.stop(run_id)
        note("It stops after this step and saves.")

    def _ask_save(self, run_id: str) -> None:
        self._jobs.request(run_id, "save")
        note("A checkpoint is saved after this step.")

    def _ask_sample(self, run_id: str) -> None:
        self._jobs.request(run_id, "preview")
        note("Samples are made after this step.")

    def _begin_again(self, run_id: str) -> None:
        self._jobs.resume(run_id)
        note("The run goes on from its last checkpoint.")

    def _end(self, run_id: str) -> None:
        self._jobs.kill(run_id)

    def _send_lora(self, run_id: str) -> tuple[Any, Any]:
        lora = lora_file(self._jobs.history(run_id))
        if lora is None:
            raise RunError("This run has no LoRA file yet.", where=self._jobs.info(run_id).title)
        return send(str(lora), "generate")


def lora_file(history: History) -> Path | None:
    """The LoRA that a run exported last: in the library, or in the run's folder where it is not there any more."""
    if history.lora is None:
        return None
    inside = history.run.folder / history.lora.path
    candidates = [Path(history.lora.library_path)] if history.lora.library_path else []
    if is_inside(inside, history.run.folder):
        candidates.append(inside)
    return next((path for path in candidates if path.is_file()), None)
