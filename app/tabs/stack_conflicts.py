"""Whether the LoRAs of the stack fight, below it: figures by block, and the suggested weights by one click."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.polling import Poll
from app.services.context import Services
from app.services.generation import GenerationService
from app.services.stack_conflicts import ConflictService
from app.services.stack_rows import Row
from app.stack_shown import with_shown
from trainer.runs import RunState

_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_ABOUT = (
    "Measures how the changes of the LoRAs that are on overlap in each block, at their weights. "
    "Block weights and steps are left out."
)


class StackConflicts:
    """The panel.

    Args:
        services: the app's.
        generation: what knows the library.
        editor: the stack; a LoraStackEditor with a prompt.
    """

    def __init__(self, services: Services, generation: GenerationService, editor: Any) -> None:
        self._jobs, self._generation, self._editor = services.jobs, generation, editor
        self._service = ConflictService(services.data, generation)
        self._chosen = gr.State(None)
        self._seen = gr.State([])
        with gr.Accordion("Understand this stack", open=False, elem_id="stack-conflicts"):
            with gr.Row():
                self._start = gr.Button("Do these LoRAs fight?", size="sm", elem_id="conflicts-start")
                self._apply = gr.Button(
                    "Use the suggested weights", variant="primary", size="sm", visible=False, elem_id="conflicts-apply"
                )
            self._found = gr.HTML(f'<div class="hint">{_ABOUT}</div>', elem_id="conflicts-found", padding=False)

    def wire(self, page: gr.Blocks, base: Any, timer: gr.Timer) -> None:
        """Connect the panel; after the editor knows the form's number of steps.

        Args:
            page: its loading is an occasion to look at the job.
            base: the form's base model.
            timer: ticks while something may happen.
        """
        editor = self._editor
        poll = Poll(page, timer, self._poll, [self._chosen, self._seen], [self._seen, self._found, self._apply])
        asked, js = [base, *editor.now], editor.now_js(1)
        poll.after(self._start.click(handler(self._begin), asked, self._chosen, trigger_mode="once", js=js, **_QUIET))
        self._apply.click(
            handler(self._use),
            [self._chosen, editor.version, *editor.linked()],
            [editor.version, *editor.linked_outputs()],
            show_progress="hidden",  # in the queue: outside of it no gr.State tells the page that it has changed
        )

    def _begin(self, base: str, rows: list[Row], version: int, shown: Any) -> str:
        return self._service.start(with_shown(rows, version, shown), base)

    def _poll(self, run_id: str | None, seen: list[Any]) -> Any:
        if not run_id or run_id not in self._jobs.ids("tool"):
            return gr.skip()
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        now = [run_id, row.state.value, history.num_events]
        if now == seen:
            return gr.skip()
        if row.state is not RunState.FINISHED:
            return {
                self._seen: now,
                self._found: render.status_line(row, history),
                self._apply: gr.update(visible=False),
            }
        found = self._service.figures(history.run)
        has_suggestion = any(line.startswith("suggestion: ") for line in found.lines)
        drawn = f'<div class="figure-picture">{found.picture}</div>' if found.picture else ""
        shown = render.figures(found.lines, ()) + drawn + render.figures((), found.tables)
        return {self._seen: now, self._found: shown, self._apply: gr.update(visible=has_suggestion)}

    def _use(self, run_id: str | None, version: int, rows: list[Row], prompt: str, steps: Any = None) -> Any:
        new = self._service.suggested(self._jobs.run(str(run_id)), rows)
        if new is None:
            note("The stack is another one by now: measure it again.")
            return gr.skip(), gr.skip(), gr.skip()
        text = self._generation.prompt_of_rows(prompt, new, steps)
        note("The stack has the suggested weights.")
        return version + 1, new, (gr.skip() if text == prompt else text)
