"""One run of a LoRA tool, followed: progress, figures, picture, and the way to what it wrote."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler
from app.polling import Poll
from app.services.context import Services
from app.services.jobs import JobRow
from app.services.tools import Figures, ToolService
from app.tabs.run_choice import RunChoice
from trainer.errors import LoraFileError
from trainer.runs import RunState

_POLL_SECONDS = 1.0
_MAX_LISTED = 50
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_NOTHING = "What a tool finds is shown here, and stays in the list of runs."


class ToolRunView(RunChoice):
    """The right side of the Tools tab."""

    def __init__(self, services: Services, tools: ToolService, links: Links) -> None:
        self._jobs, self._tools, self._links = services.jobs, tools, links
        self.chosen = gr.State(None)
        self._seen = gr.State({})
        self.picker = gr.Dropdown([], label="Run", elem_id="tool-picker", interactive=True, visible=False)
        self._status = gr.HTML(render.empty(_NOTHING), elem_id="tool-status", padding=False)
        with gr.Row():
            self._cancel = gr.Button("Cancel", elem_id="tool-cancel", visible=False, size="sm", min_width=90)
            self._open = gr.Button(
                "Open in LoRAs →", elem_id="tool-open", variant="primary", visible=False, size="sm", min_width=120
            )
        self._figures = gr.HTML("", elem_id="tool-figures", padding=False)
        self._picture = gr.HTML("", elem_id="tool-picture", padding=False)
        self._shown = [
            *(self.chosen, self._seen, self.picker, self._status),
            *(self._cancel, self._open, self._figures, self._picture),
        ]
        self._wire()

    def _wire(self) -> None:
        links = self._links
        clock, inputs = links.clock(_POLL_SECONDS), [self.chosen, self._seen]
        self.poll = Poll(links.page, clock, self._poll, inputs, self._shown, links.tab.select)
        self.poll.after(
            self.picker.input(lambda run_id: run_id, self.picker, self.chosen, **_QUIET),
            self._cancel.click(handler(self._stop), self.chosen, None, **_QUIET),
        )
        self._open.click(
            handler(self._send),
            self.chosen,
            [self._links.lora_for_library, self._links.tabs],
            show_progress="hidden",  # and in the queue: outside of it no gr.State tells the page that it has changed
        )

    def _poll(self, chosen: str | None, seen: dict[str, Any]) -> Any:
        """What changed since `seen`."""
        ids = self._jobs.ids("tool")
        run_id = chosen if chosen in ids else self._jobs.newest("tool")
        if run_id is None:
            return gr.skip() if not seen else self._nothing()
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        now = {"list": ids[:_MAX_LISTED], "run": [run_id, row.state.value, history.num_events]}
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {self._seen: now}
        updates |= self.chosen_after(chosen, run_id, is_list_new=now["list"] != seen.get("list"))
        if now["run"] != seen.get("run"):
            updates |= self._show(row)
        return updates

    def _choices(self) -> list[tuple[str, str]]:
        found = [(self._jobs.info(run_id), run_id) for run_id in self._jobs.ids("tool")[:_MAX_LISTED]]
        when = "%Y-%m-%d %H:%M:%S"
        return [
            (f"{about.title} · {time.strftime(when, time.localtime(about.created))}", name) for about, name in found
        ]

    def _show(self, row: JobRow) -> dict[Any, Any]:
        history = self._jobs.history(row.id)
        is_open = row.state is RunState.QUEUED or row.state.is_active
        stage = history.stage
        bar = render.bar(stage.done, stage.total) if stage and stage.total and row.state is RunState.RUNNING else ""
        found = self._tools.figures(history.run) if row.state is RunState.FINISHED else Figures()
        title = f'<div class="section-title">{render.text(row.title)}</div>'
        picture = f'<div class="figure-picture">{found.picture}</div>' if found.picture else ""
        return {
            self._status: title + render.status_line(row, history) + bar,
            self._cancel: gr.update(visible=is_open),
            self._open: gr.update(visible=self._tools.library_name(found) is not None),
            self._figures: render.figures(found.lines, found.tables),
            self._picture: picture,
        }

    def _nothing(self) -> dict[Any, Any]:
        return {
            self.chosen: None,
            self._seen: {},
            self.picker: gr.update(choices=[], value=None, visible=False),
            self._status: render.empty(_NOTHING),
            self._cancel: gr.update(visible=False),
            self._open: gr.update(visible=False),
            self._figures: "",
            self._picture: "",
        }

    def _stop(self, run_id: str) -> None:
        self._jobs.stop(run_id)

    def _send(self, run_id: str) -> Any:
        name = self._tools.library_name(self._tools.figures(self._jobs.run(run_id)))
        if name is None:
            raise LoraFileError("The file is no longer in the library.", fix="Run the tool again.")
        return send(name, "loras")
