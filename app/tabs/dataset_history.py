"""The History section: every change of a data set, undone and done again to any point; and what its runs were trained on."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.dataset_history import ChangeRow, DatasetHistoryService, summary
from app.tabs.dataset_bringing import Bringing
from app.tabs.dataset_page import DatasetPage, news
from trainer.dataset.restoring import Restored
from trainer.dataset.versions import Difference

TITLE = "History"
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_SHOWN = 300


class HistorySection:
    """One page's History section."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service = DatasetHistoryService(services.data)
        self._page = page
        self._chosen = gr.State(-1)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                self._table = gr.Dataframe(
                    headers=["", "Change", "When"],
                    datatype="str",
                    column_widths=["18%", "52%", "30%"],
                    interactive=False,
                    wrap=True,
                    max_height=320,
                    label="Changes: choose one to see what differs since",
                    elem_id="dataset-history-table",
                    elem_classes="row-table",
                )
                self._go = gr.Button("Go to this state", interactive=False, elem_id="dataset-history-go", **_SMALL)
            with gr.Column(scale=3, min_width=280):
                self._run = gr.Dropdown(
                    [],
                    value=None,
                    label="Or a run that was trained on it",
                    info="Compares what the run was trained on with what there is now.",
                    elem_id="dataset-history-run",
                    interactive=True,
                )
                self._restore = gr.Button(
                    "Bring that state back", interactive=False, elem_id="dataset-history-restore", **_SMALL
                )
                with gr.Row():
                    self._name = gr.Textbox(
                        "", label="Name of a new data set", elem_id="dataset-history-name", max_length=100
                    )
                    self._copy = gr.Button(
                        "Make a new data set of it", interactive=False, elem_id="dataset-history-copy", **_SMALL
                    )
        self._diff = gr.HTML("", elem_id="dataset-history-diff", padding=False)
        self._wire()

    def _wire(self) -> None:
        choice, changed = self._page.choice, self._page.changed
        shown = [self._table, self._run, self._diff, self._chosen, self._go, self._restore, self._copy]
        self._page.on_show(self._show, [], shown)
        parts = [self._diff, self._chosen, self._go, self._restore, self._copy]
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        self._table.select(handler(self._choose), [choice], [*parts, self._run], **hidden)
        self._run.input(handler(self._compare), [choice, self._run], parts, **hidden)
        self._go.click(handler(self._step), [choice, self._chosen], changed, **hidden)
        self._restore.click(handler(self._bring_back), [choice, self._run], changed, **hidden)
        bringing = self._page.bringing
        begin = partial(self._make_copy, bringing)
        self._copy.click(
            handler(begin), [bringing.run, choice, self._run, self._name], bringing.parts, trigger_mode="once", **hidden
        )
        bringing.empties("copy", self._name)

    def _show(self, name: str) -> dict[Any, Any]:
        rows = self._service.changes(name) if name else []
        return {
            self._table: [_cells(row) for row in rows],
            self._run: gr.update(choices=self._service.runs(name) if name else [], value=None),
            **self._nothing_chosen(),
        }

    def _nothing_chosen(self) -> dict[Any, Any]:
        off = gr.update(interactive=False)
        return {self._diff: "", self._chosen: -1, self._go: off, self._restore: off, self._copy: off}

    def _choose(self, name: str | None, event: gr.SelectData) -> dict[Any, Any]:
        rows = self._service.changes(name) if name else []
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not name or not 0 <= index < len(rows):
            return {**self._nothing_chosen(), self._run: gr.skip()}
        row = rows[index]
        found = self._service.since_change(name, row.position)
        return {
            **self._nothing_chosen(),
            self._diff: _difference_html(row.title, found),
            self._chosen: row.position,
            self._go: gr.update(interactive=not row.is_current),
            self._run: None,
        }

    def _compare(self, name: str | None, run_id: str | None) -> dict[Any, Any]:
        if not name or not run_id:
            return self._nothing_chosen()
        version, found = self._service.since_run(name, run_id)
        title = f"{run_id}: {len(version.pictures)} pictures, hash {version.sha256[:12]}"
        on = gr.update(interactive=True)
        return {
            **self._nothing_chosen(),
            self._diff: _difference_html(title, found),
            self._restore: gr.update(interactive=bool(found)),
            self._copy: on,
        }

    def _step(self, name: str | None, position: int) -> Any:
        if not name or position < 0:
            return gr.skip()
        self._service.go_to(name, position)
        return news()

    def _bring_back(self, name: str | None, run_id: str | None) -> Any:
        if not name or not run_id:
            return gr.skip()
        _tell(self._service.restore_run(name, run_id))
        return news()

    def _make_copy(self, bringing: Bringing, followed: str, name: str | None, run_id: str | None, new_name: str) -> Any:
        if not name or not run_id:
            return gr.skip()
        updates = bringing.begin(followed, lambda: self._service.copy_run(name, run_id, new_name), made=new_name)
        note("The pictures are brought back: below the list of data sets you see how far it is.")
        return updates


def _cells(row: ChangeRow) -> list[str]:
    mark = "● now" if row.is_current else "undone" if row.is_undone else ""
    return [mark, row.title, render.clock(row.at)]


def _difference_html(title: str, found: list[Difference]) -> str:
    lines = "".join(f'<li class="difference {one.kind}">{render.text(one)}</li>' for one in found[:_SHOWN])
    more = f"<li>… and {len(found) - _SHOWN} more</li>" if len(found) > _SHOWN else ""
    head = f'<div class="section-title">{render.text(title)}</div><div class="hint">{summary(found)}</div>'
    return f"{head}<ul>{lines}{more}</ul>"


def _tell(restored: Restored) -> None:
    note(restored.summary())
    if restored.problems:
        shown = "; ".join(str(problem) for problem in restored.problems[:5])
        note(f"Not brought back ({len(restored.problems)}): {shown}")


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    HistorySection(services, page)
