"""Which run a view shows, and the drop-down to choose it by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gradio as gr


class RunChoice(ABC):
    """What views of a run share. `chosen` is the state with the run's id, `picker` the drop-down."""

    chosen: gr.State
    picker: gr.Dropdown

    @abstractmethod
    def _choices(self) -> list[tuple[str, str]]:
        """The runs that can be chosen: title and id."""

    def choose(self, run_id: str) -> dict[Any, Any]:
        """Updates that make a run the one that is shown."""
        return {self.chosen: run_id, self.picker: gr.update(choices=self._choices(), value=run_id, visible=True)}

    def chosen_after(self, chosen: str | None, run_id: str, *, is_list_new: bool) -> dict[Any, Any]:
        """Updates of a look that was asked for `chosen` and shows a run, with the same list of runs as before or another."""
        if chosen != run_id:
            return self.choose(run_id)
        # Without a value: what was chosen while this looked, as a run that was just started, must stay chosen.
        return {self.picker: gr.update(choices=self._choices(), visible=True)} if is_list_new else {}
