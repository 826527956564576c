"""How a training run goes on: for more steps, or with what helps against the fault that ended it. A part of two tabs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.messages import handler, note
from app.polling import Poll
from app.services.jobs import JobRow, JobService
from trainer.errors import RunError
from trainer.resumption import Resumption

_MAX_REMEDIES = 2


class ResumptionRow:
    """A field and button for more steps, and a button for each remedy.

    Args:
        prefix: of the elements' ids in the page.
    """

    def __init__(self, jobs: JobService, prefix: str) -> None:
        self._jobs = jobs
        small: dict[str, Any] = {"size": "sm", "visible": False, "min_width": 90}
        with gr.Row():
            self._remedies = [
                gr.Button("", variant="primary", elem_id=f"{prefix}-remedy-{index}", **small)
                for index in range(_MAX_REMEDIES)
            ]
        with gr.Row():
            self._steps = gr.Number(
                label="Steps in all",
                precision=0,
                minimum=1,
                visible=False,
                elem_id=f"{prefix}-more-steps",
                min_width=120,
                info="More than it has: the run goes on where it ended, and the schedule is stretched.",
            )
            self._extend = gr.Button("Train on", elem_id=f"{prefix}-extend", **small)
        self.components = [*self._remedies, self._steps, self._extend]

    def wire(self, chosen: gr.State, poll: Poll) -> None:
        """Connect the buttons; after each the tab looks at the run again."""
        options: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
        for button in self._remedies:
            poll.after(button.click(handler(self._help), [chosen, button], None, **options))
        poll.after(self._extend.click(handler(self._train_on), [chosen, self._steps], None, **options))

    def updates(self, row: JobRow | None) -> dict[Any, Any]:
        """What is shown for a run."""
        words = list(self._jobs.remedies(row.id)) if row else []
        found: dict[Any, Any] = {}
        for index, button in enumerate(self._remedies):
            word = words[index] if index < len(words) else ""
            found[button] = gr.update(visible=bool(word), value=word)
        is_extensible = row is not None and row.is_extensible
        found[self._extend] = gr.update(visible=is_extensible)
        found[self._steps] = gr.update(visible=is_extensible)
        if row is not None and is_extensible:
            found[self._steps] = gr.update(visible=True, value=2 * self._jobs.history(row.id).total_steps or None)
        return found

    def _help(self, run_id: str, word: str) -> None:
        wish = self._jobs.remedies(run_id).get(word)
        if wish is None:
            raise RunError("This run is in another state by now.", fix="Look at it again.")
        self._jobs.resume(run_id, wish)
        note("The run goes on from its last checkpoint.")

    def _train_on(self, run_id: str, steps: float | None) -> None:
        if steps is None:
            raise RunError(
                "It is not said how far to train.", fix="Write the number of steps in all beside the button."
            )
        self._jobs.resume(run_id, Resumption(steps=int(steps)))
        note(f"The run goes on to {int(steps)} steps in all.")
