"""What the sections of the Dataset tab share: the data set that is chosen, and the news that it has changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.datasets import DatasetView
from app.tabs import dataset_html
from trainer.errors import DatasetError

if TYPE_CHECKING:
    from app.tabs.dataset_bringing import Bringing

_TOLD = 5


@dataclass
class DatasetPage:
    """One page's Dataset tab as its sections see it."""

    choice: gr.Dropdown
    """Name of the data set."""
    changed: gr.State
    """Put `news()` here after a change: the tab and the section in view then show what there is now."""
    seen: gr.State
    """Id of the section in view."""
    summary: gr.HTML
    problems: gr.HTML
    bringing: Bringing
    """Follows whatever brings pictures in."""
    section: gr.Tab | None = None
    """The section that is being built."""

    @property
    def summary_parts(self) -> list[Any]:
        """Outputs of `show_summary`."""
        return [self.summary, self.problems]

    def show_summary(self, view: DatasetView) -> dict[Any, Any]:
        """How many pictures, captions and problems there are."""
        rows = view.problem_rows()
        title = f'<div class="section-title">{render.text(view.info.title)}</div>'
        line = f'<div class="plan-line" role="status">{render.text(view.summary)}</div>'
        return {
            self.summary: title + line,
            self.problems: gr.update(value=dataset_html.problem_list(rows), visible=bool(rows)),
        }

    def on_show(
        self, show: Callable[..., dict[Any, Any]], inputs: Sequence[Any], outputs: Sequence[Any], **options: Any
    ) -> None:
        """Let `show(name of the data set, *inputs)` fill the section being built whenever it is opened, and when another
        data set is chosen or this one changes while it is in view. The name may be empty.

        Raises: ValueError: no section is being built.
        """
        if self.section is None:
            raise ValueError("no section is being built")
        own = self.section.id

        def shown(name: str | None, *values: Any) -> dict[Any, Any]:
            try:
                return show(name or "", *values)
            except DatasetError as error:  # it cannot be opened: nothing of the one before may stay in view
                note(str(error))
                return show("", *values)

        def opened(name: str | None, *values: Any) -> dict[Any, Any]:
            return {self.seen: own, **shown(name, *values)}

        def refreshed(seen: str, name: str | None, *values: Any) -> Any:
            return shown(name, *values) if seen == own else gr.skip()

        options = {"show_progress": "hidden", **options}
        self.section.select(handler(opened), [self.choice, *inputs], [self.seen, *outputs], **options)
        # Not by the choice itself: the tab looks at the pictures then, which may take long, and tells when it has done so.
        self.changed.change(handler(refreshed), [self.seen, self.choice, *inputs], [*outputs], **options)


def note_left_out(left_out: Sequence[str], number: int, head: str = "Left out") -> None:
    """Say what was not taken, if anything: the first few of `number`."""
    if number:
        more = [f"… and {number - _TOLD:,} more"] if number > _TOLD else []
        note(f"{head}: {'; '.join([*left_out[:_TOLD], *more])}")


def shown_after(made: str, chosen: str | None, *, is_new: bool) -> str:
    """The data set to show when pictures came into `made`: a new one; who added to one may be at work in another by now."""
    return made if is_new or not chosen else chosen


def news() -> float:
    """A value for `DatasetPage.changed` that no earlier one is equal to."""
    return time.time()
