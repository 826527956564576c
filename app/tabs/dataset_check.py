"""The check of a data set: started as a job, its findings by kind, each with its pictures, a fix and a way to ignore it."""

from __future__ import annotations

from typing import Any, get_args

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.dataset_check import DatasetCheckService, counts, rows, shown_pictures
from app.services.jobs import History, JobRow
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.job_follower import JobFollower
from trainer.dataset.doctor.diagnosis import CHECKS
from trainer.dataset.doctor.findings import Finding, Report, Verdict
from trainer.dataset.doctor.settings import CaptionTokens, CheckSettings
from trainer.errors import DatasetError
from trainer.runs import RunState

TITLE = "Check"
_SHOWN_ROWS = 500
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_UNCHECKED = "Looks for duplicates, blur, bars, bad captions and more. Nothing is changed by looking."


class CheckSection:
    """What is chosen lives in the browser: a kind of finding, and the place of one in its list."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service, self._jobs = DatasetCheckService(services.data), services.jobs
        self._shared = page
        self._choice = page.choice
        self._lay_out_asking()
        self._lay_out_findings()
        asked = [self._base, self._resolution, self._tokens]
        self._asked = [self._choice, *asked, self._kind, self._place]
        self._found_parts = [self._status, self._kind, self._list, self._why, self._place, *self._detail]
        self._shown = list(dict.fromkeys([*self._job.parts, self._start, *self._found_parts]))
        page.on_show(self._show, [*asked, self._kind, self._place], self._shown, show_progress_on=[self._status])
        self._wire()

    # --- layout --------------------------------------------------------------------------------------------------

    def _lay_out_asking(self) -> None:
        base = self._service.usual_base
        with gr.Row(equal_height=True):
            self._base = gr.Dropdown(
                self._service.bases(), value=base, label="Base model", elem_id="check-base", interactive=True, scale=3
            )
            self._resolution = gr.Number(
                self._service.resolution_of(base),
                label="Resolution (px)",
                precision=0,
                minimum=32,
                maximum=2048,
                elem_id="check-resolution",
                interactive=True,
                min_width=110,
            )
            self._tokens = gr.Dropdown(
                list(get_args(CaptionTokens)),
                value=225,
                label="Caption tokens",
                elem_id="check-tokens",
                interactive=True,
                min_width=110,
            )
        with gr.Row():
            self._start = gr.Button("Check", variant="primary", elem_id="check-start", **_SMALL)
            self._cancel = gr.Button("Cancel", visible=False, elem_id="check-cancel", **_SMALL)
        self._status = gr.HTML(render.empty(_UNCHECKED), elem_id="check-status", padding=False)
        self._job = JobFollower(self._jobs, self._status, self._cancel, "It stops; what was measured is kept.")

    def _lay_out_findings(self) -> None:
        self._kind = gr.Radio([], show_label=False, visible=False, elem_id="check-kind", interactive=True)
        self._why = gr.HTML("", elem_id="check-why", padding=False)
        self._place = gr.State(0)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                self._list = gr.Dataframe(
                    headers=["Picture", "Found", "Verdict"],
                    column_widths=["30%", "46%", "24%"],
                    interactive=False,
                    wrap=True,
                    show_label=False,
                    buttons=[],
                    max_height=420,
                    visible=False,
                    elem_id="check-list",
                    elem_classes="row-table",
                )
            with gr.Column(scale=3, min_width=280, visible=False) as self._panel:
                self._message = gr.HTML("", elem_id="check-message", padding=False)
                self._pictures = gr.Gallery(
                    show_label=False,
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="check-pictures",
                    elem_classes="picture-grid",
                )
                self._keep, self._key = gr.State(""), gr.State("")
                with gr.Row():
                    self._fix = gr.Button("Fix", variant="primary", elem_id="check-fix", **_SMALL)
                    self._ignore = gr.Button("Ignore: it is right as it is", elem_id="check-ignore", **_SMALL)
                with gr.Row():
                    self._fix_all = gr.Button("Fix all of this kind", elem_id="check-fix-all", **_SMALL)
                    self._ignore_all = gr.Button("Ignore all of this kind", elem_id="check-ignore-all", **_SMALL)

    @property
    def _detail(self) -> list[Any]:
        return [
            *(self._panel, self._message, self._pictures, self._keep, self._key),
            *(self._fix, self._fix_all, self._ignore_all),
        ]

    # --- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        changed = self._shared.changed
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        self._start.click(
            handler(self._begin), self._asked[:4], [*self._job.parts, self._start], trigger_mode="once", **hidden
        )
        self._job.wire(self._ended, outputs=[self._start, changed])
        self._base.input(handler(self._service.resolution_of), self._base, self._resolution, **_QUIET).success(
            handler(self._again), self._asked, self._found_parts, **hidden
        )
        for event in (self._resolution.submit, self._resolution.blur, self._tokens.input):
            event(handler(self._again), self._asked, self._found_parts, **hidden)
        self._kind.input(handler(lambda *asked: self._again(*asked[:-1], 0)), self._asked, self._found_parts, **hidden)
        self._list.select(handler(self._look), self._asked[:5], [self._place, *self._detail], **hidden)
        seen = [*self._asked, self._key]
        self._pictures.select(handler(self._choose), seen, [self._keep, self._fix], **hidden)
        self._fix.click(handler(self._do), [*seen, self._keep], changed, trigger_mode="once", **hidden)
        for button, act in (
            (self._ignore, self._do_ignore),
            (self._fix_all, self._do_all),
            (self._ignore_all, self._ignore_kind),
        ):
            button.click(handler(act), seen, changed, trigger_mode="once", **hidden)

    # --- the job -------------------------------------------------------------------------------------------------

    def _begin(self, name: str | None, base: str, resolution: float, tokens: int) -> dict[Any, Any]:
        if not name:
            raise DatasetError("No data set is chosen.", fix="Choose one on the left.")
        return self._follow(self._service.start(name, _settings(base, resolution, tokens)))

    def _follow(self, run_id: str) -> dict[Any, Any]:
        return {**self._job.follow(run_id), self._start: gr.update(interactive=False)}

    def _ended(self, row: JobRow, history: History) -> dict[Any, Any]:
        if history.error:
            note(str(history.error))
        elif row.state is RunState.INTERRUPTED:
            note("The check ended without saying why. Check again: it goes on where it was.")
        # What was found is shown by the news.
        return {self._job.run: "", self._start: gr.update(interactive=True), self._shared.changed: news()}

    def _idle(self) -> dict[Any, Any]:
        return {**self._job.forget(), self._start: gr.update(interactive=True)}

    # --- what was found ------------------------------------------------------------------------------------------

    def _show(
        self, name: str, base: str, resolution: float, tokens: int, kind: str | None, place: int
    ) -> dict[Any, Any]:
        nothing = {
            **self._idle(),
            self._status: render.empty(_UNCHECKED),
            self._kind: gr.update(choices=[], value=None, visible=False),
            self._list: gr.update(visible=False),
            self._why: "",
            self._panel: gr.update(visible=False),
        }
        if not name:
            return nothing
        run_id = self._service.working(name)
        if run_id:
            return {**nothing, **self._follow(run_id)}
        report = self._service.report(name, _settings(base, resolution, tokens))
        if len(report.pictures) and report.num_unmeasured == len(report.pictures):
            return nothing
        return {**nothing, self._status: _summary(report), **self._show_kind(name, report, kind, place)}

    def _again(self, name: str | None, *asked: Any) -> Any:
        """What was found, judged by what is asked now. It leaves the job's parts alone: a click on Check may be under way."""
        if not name or self._service.working(name):
            return gr.skip()
        return {part: value for part, value in self._show(name, *asked).items() if part in self._found_parts}

    def _show_kind(self, name: str, report: Report, kind: str | None, place: int) -> dict[Any, Any]:
        groups = rows(report)
        if not groups:
            return {}
        known = {check: found for check, _, found in groups}
        check = kind if kind in known else groups[0][0]
        found = known[check]
        place = max(0, min(place, len(found) - 1)) if check == kind else 0
        choices = [(f"{title} ({len(each)})", name) for name, title, each in groups]
        return {
            self._kind: gr.update(choices=choices, value=check, visible=True),
            self._why: f'<div class="hint">{render.text(CHECKS[check].why)}</div>',
            self._list: gr.update(value=[_row(finding) for finding in found[:_SHOWN_ROWS]], visible=True),
            self._place: place,
            **self._show_finding(name, found, place),
        }

    def _show_finding(self, name: str, found: list[Finding], place: int) -> dict[Any, Any]:
        finding = found[place]
        names = ", ".join(finding.pictures[:3]) + (" …" if len(finding.pictures) > 3 else "")
        head = f'<div class="picture-name">{render.text(names)}</div>' if names else ""
        hint = '<div class="hint">Click on another picture to keep that one instead.</div>' if finding.keep else ""
        tiles = self._service.pictures(name, finding)
        num_fixes = sum(1 for each in found if each.fix)
        return {
            self._panel: gr.update(visible=True),
            self._message: f"{head}<div>{render.text(finding.message)}</div>{hint}",
            self._pictures: gr.update(value=tiles, visible=bool(tiles), selected_index=None),
            self._keep: finding.keep,
            self._key: finding.key,
            self._fix: gr.update(value=finding.fix.title if finding.fix else "Fix", visible=bool(finding.fix)),
            self._fix_all: gr.update(value=f"Fix all {num_fixes} of this kind", visible=num_fixes > 1),
            self._ignore_all: gr.update(value=f"Ignore all {len(found)} of this kind", visible=len(found) > 1),
        }

    def _found(self, *asked: Any) -> list[Finding]:
        """The findings of the chosen kind as they are now. Raises DatasetError: there are none any more."""
        name, base, resolution, tokens, kind = asked[:5]
        report = self._service.report(name or "", _settings(base, resolution, tokens))
        found = next((found for check, _, found in rows(report) if check == kind), None)
        if not found:
            raise DatasetError("This was fixed or ignored meanwhile.", fix="Open the section again.")
        return found

    def _one(self, *asked: Any) -> Finding:
        """The finding in view. Raises DatasetError: the data set changed, and it is there no more."""
        found = next((finding for finding in self._found(*asked) if finding.key == asked[6]), None)
        if found is None:
            raise DatasetError("This was fixed or ignored meanwhile.", fix="Open the section again.")
        return found

    def _look(self, event: gr.SelectData, *asked: Any) -> dict[Any, Any]:
        found = self._found(*asked)
        place = min(int(event.index[0]), len(found) - 1)
        return {self._place: place, **self._show_finding(asked[0], found, place)}

    def _choose(self, event: gr.SelectData, *asked: Any) -> Any:
        finding = self._one(*asked)
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        if not finding.keep:
            return gr.skip()
        keep = shown_pictures(finding)[index]
        return {self._keep: keep, self._fix: gr.update(value=self._service.keeping(asked[0], finding, keep))}

    def _do(self, *asked: Any) -> float:
        note(f"{self._service.fix(asked[0], self._one(*asked[:-1]), asked[-1])}. Undo takes it back.")
        return news()

    def _do_ignore(self, *asked: Any) -> float:
        self._service.ignore(asked[0], [self._one(*asked)])
        return news()

    def _do_all(self, *asked: Any) -> float:
        number = self._service.fix_all(asked[0], [finding for finding in self._found(*asked) if finding.fix])
        note(f"{number} fixed. Undo takes it back.")
        return news()

    def _ignore_kind(self, *asked: Any) -> float:
        self._service.ignore(asked[0], self._found(*asked))
        return news()


def _settings(base: str, resolution: float, tokens: int) -> CheckSettings:
    side = int(resolution or 0)
    if not 32 <= side <= 2048:
        raise DatasetError("The resolution must be from 32 to 2048 pixels.", where=str(resolution))
    return CheckSettings(resolution=side, base=base, max_caption_tokens=tokens)  # type: ignore[arg-type] - one of the choices


def _row(finding: Finding) -> list[str]:
    verdict = "a remark" if finding.verdict is Verdict.GOOD else finding.verdict.value
    return [", ".join(finding.pictures) or "all", finding.message, verdict]


def _summary(report: Report) -> str:
    numbers = " · ".join(f"{number:,} {verdict.value}" for verdict, number in counts(report))
    more = f" · {report.num_ignored:,} findings ignored" if report.num_ignored else ""
    rest = f" {report.num_unmeasured:,} pictures were not looked at yet: check again." if report.num_unmeasured else ""
    return (
        f'<div class="plan-line" role="status">{render.text(report.summary + rest)}</div>'
        f'<div class="hint">{render.text(numbers + more)}</div>'
    )


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    CheckSection(services, page)
