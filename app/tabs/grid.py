"""Grids, in the Generate tab: three axes over the form's settings, what each LoRA does by one click, and their pictures."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app import render
from app.form import Form
from app.messages import handler, note
from app.polling import Poll
from app.services.context import Services
from app.services.generation import GenerationService
from app.services.grids import EACH_LORA, GridService
from app.services.stack_rows import Row
from app.tabs.galleries import made_gallery
from trainer.config.fields import describe
from trainer.config.grid import AXIS_NAMES, GridAxes
from trainer.errors import ConfigError
from trainer.runs import RunState

_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_EXAMPLES = {"x": "cfg=3,5,7", "y": "lora:NAME=0-1:0.25", "z": "seed=1-3"}
_TITLES = {"x": "X, from left to right", "y": "Y, from top to bottom", "z": "Z, one table below the other"}


class GridPanel:
    """The panel.

    Args:
        services: the app's.
        generation: what checks the form.
    """

    def __init__(self, services: Services, generation: GenerationService) -> None:
        self._jobs = services.jobs
        self._service = GridService(services.data, generation)
        helps = {spec.path: spec.help for spec in describe(GridAxes)}
        self._chosen = gr.State(None)
        self._seen = gr.State({})
        self._paths = gr.State([])
        with gr.Accordion("Grid: compare settings side by side", open=False, elem_id="gen-grid"):
            self._axes = [
                gr.Textbox(
                    label=_TITLES[name],
                    placeholder=_EXAMPLES[name],
                    info=helps[name] if name == "x" else None,
                    max_lines=1,
                    interactive=True,
                    elem_id=f"grid-{name}",
                )
                for name in AXIS_NAMES
            ]
            with gr.Row():
                self._start = gr.Button("Make the grid", variant="primary", size="sm", elem_id="grid-start")
                self._each = gr.Button("What does each LoRA do?", size="sm", elem_id="grid-each")
            self._problems = gr.HTML("", elem_id="grid-problems", padding=False)
            self._status = gr.HTML("", elem_id="grid-status", padding=False)
            self._cancel = gr.Button("Cancel the grid", elem_id="grid-cancel", visible=False, size="sm")
            self._preview = gr.HTML("", elem_id="grid-preview", padding=False)
            self._gallery = made_gallery("grid-gallery", "Grid and its pictures")

    def wire(
        self,
        form: Form,
        stack: list[gr.State],
        read: Callable[[dict[Any, Any]], tuple[dict[str, Any], list[Row]]],
        page: gr.Blocks,
        timer: gr.Timer,
        choose: Callable[[list[str], gr.SelectData], Any],
        shown: list[Any],
    ) -> None:
        """Connect the panel.

        Args:
            form, stack: the components that the settings and the stack are in.
            read: their values and the stack.
            page: its loading is an occasion to look at the grid.
            timer: ticks while something may happen.
            choose: shows the recipe of the picture that is chosen of a list, in `shown`.
        """
        told = [self._seen, self._status, self._cancel, self._preview, self._gallery, self._paths]
        poll = Poll(page, timer, self._poll, [self._chosen, self._seen], told)
        begun: dict[str, Any] = {"outputs": [self._problems, self._chosen], "trigger_mode": "once", **_QUIET}
        axes = self._axes

        def begin(raw: dict[Any, Any]) -> Any:
            return self._begin(*read(raw), {name: raw[box] for name, box in zip(AXIS_NAMES, axes, strict=True)})

        def begin_each(raw: dict[Any, Any]) -> Any:
            return self._begin(*read(raw), {"x": EACH_LORA})

        poll.after(
            form.send(self._start.click, begin, [*stack, *axes], **begun),
            form.send(self._each.click, begin_each, stack, **begun),
            self._cancel.click(handler(self._stop), self._chosen, None, **_QUIET),
        )
        self._gallery.select(handler(choose), self._paths, shown, **_QUIET)

    def _begin(self, values: dict[str, Any], rows: list[Row], axes: dict[str, str]) -> tuple[str, Any]:
        try:
            config, count = self._service.check(values, rows, axes)
        except ConfigError as error:
            told = [f"{finding.where}: {finding.message}" for finding in error.findings] or [error.message]
            lines = "<br>".join(html.escape(line) for line in told)
            return f'<div class="problems">{lines}</div>', gr.skip()
        run_id = self._service.start(config)
        note(f"A grid of {count} pictures begins.")
        return "", run_id

    def _stop(self, run_id: str | None) -> None:
        current = run_id or self._jobs.newest("grid")
        if current:
            self._jobs.stop(current)

    def _poll(self, chosen: str | None, seen: dict[str, Any]) -> Any:
        ids = self._jobs.ids("grid")
        run_id = chosen if chosen in ids else self._jobs.newest("grid")
        if run_id is None:
            return gr.skip()
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        now = {"run": run_id, "state": row.state.value, "events": history.num_events}
        if now == {key: value for key, value in seen.items() if key != "pictures"}:
            return gr.skip()
        is_open = row.state is RunState.QUEUED or row.state.is_active
        pictures = [str(path) for path in self._jobs.pictures(run_id) if Path(path).is_file()]
        stage = history.stage
        done = render.bar(stage.done, stage.total) if stage and stage.total and row.state is RunState.RUNNING else ""
        updates: dict[Any, Any] = {
            self._seen: {**now, "pictures": seen.get("pictures") if is_open else pictures},
            self._status: "" if row.state is RunState.FINISHED else render.status_line(row, history) + done,
            self._cancel: gr.update(visible=is_open),
            self._preview: render.preview(history) if row.state is RunState.RUNNING else "",
        }
        # The gallery is costly to draw: while cells are made, the preview shows them.
        if not is_open and pictures != seen.get("pictures"):
            updates |= {self._gallery: pictures, self._paths: pictures}
        return updates
