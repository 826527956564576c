"""Captions by a captioner: its settings, a try on three pictures, and the run that writes them into the data set."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from app import render
from app.fields import element_id, info, make_widget
from app.form import Form
from app.messages import handler
from app.services.captioning import CaptioningService
from app.services.context import Services
from app.services.jobs import History, JobRow
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.job_follower import JobFollower
from trainer.config.base import Level
from trainer.config.caption import CaptionConfig, groups_of
from trainer.config.fields import describe
from trainer.errors import ConfigError, Finding
from trainer.runs import RunState

TITLE = "Auto-caption"
_PREFIX = "caption"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_GROUPS = ("tags", "tagger", "blip", "florence2", "server")


class CaptionSection:
    """One page's Caption section. Which run is followed is kept in the browser."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service, self._jobs, self._shared = CaptioningService(services.data), services.jobs, page
        specs = {spec.path: spec for spec in describe(CaptionConfig) if spec.path not in ("dataset", "preview")}
        self._form = Form(specs.values(), _PREFIX)
        self._lay_out_choice()
        self._lay_out_groups()
        self._lay_out_start()
        self._wire()

    # --- layout --------------------------------------------------------------------------------------------------

    def _lay_out_choice(self) -> None:
        spec = self._form.specs["captioner"]
        kinds = gr.Dropdown(
            self._service.captioners(),
            value=spec.default,
            label="Captioner",
            info=info(spec),
            elem_id=element_id("captioner", _PREFIX),
            interactive=True,
        )
        self._captioner = self._form.adopt("captioner", kinds)
        with gr.Column(visible=False) as self._model_row:
            model = gr.Dropdown(
                [],
                value="",
                allow_custom_value=True,
                label="Model",
                info=info(self._form.specs["model"]),
                elem_id=element_id("model", _PREFIX),
                interactive=True,
            )
            self._model = self._form.adopt("model", model)
            self._fetch = gr.Button("Download this model", elem_id="caption-fetch", **_SMALL)
        with gr.Row(equal_height=False):
            self._form.place("existing", min_width=260)
            self._form.place("wording.guide", min_width=260)

    def _lay_out_groups(self) -> None:
        """The settings of all captioners side by side: only those of the chosen one are shown."""
        self._own: dict[Any, str] = {}
        first = groups_of(self._form.specs["captioner"].default)
        with gr.Row(equal_height=False):
            self._place(_GROUPS, Level.BASIC, first)
        has_more = bool(set(first) & self._groups_with_more)
        self._more = gr.Accordion("More", open=False, visible=has_more, elem_id="caption-more")
        with self._more, gr.Row(equal_height=False):
            self._place(_GROUPS, Level.ADVANCED, first)
        words = gr.Accordion("Words: leave out, replace, put around", open=False, elem_id="caption-wording")
        with words:
            trigger = make_widget(self._form.specs["wording.insert_trigger"], _PREFIX)
            self._form.adopt("wording.insert_trigger", trigger)
            with gr.Row(equal_height=False):
                self._place(("wording",), Level.BASIC, ("wording",))

    @property
    def _groups_with_more(self) -> set[str]:
        return {spec.group for spec in self._form.specs.values() if spec.level is Level.ADVANCED}

    def _place(self, groups: Sequence[str], level: Level, shown: Sequence[str]) -> None:
        for path, spec in self._form.specs.items():
            if spec.group in groups and spec.level is level and path not in self._form.widgets:
                widget = self._form.place(path, min_width=300, visible=spec.group in shown)
                self._own[widget] = spec.group

    def _lay_out_start(self) -> None:
        self._problems = gr.HTML("", elem_id="caption-problems", padding=False)
        with gr.Row():
            self._try = gr.Button("Try on three pictures", elem_id="caption-try", **_SMALL)
            self._start = gr.Button("Caption", variant="primary", elem_id="caption-start", **_SMALL)
            self._cancel = gr.Button("Stop", visible=False, elem_id="caption-cancel", **_SMALL)
        self._status = gr.HTML("", elem_id="caption-status", padding=False)
        self._result = gr.HTML("", elem_id="caption-result", padding=False)
        self._marked = gr.State([])
        self._job = JobFollower(self._jobs, self._status, self._cancel, "It stops; what is captioned stays.")

    # --- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        form, choice = self._form, self._shared.choice
        given = [self._marked, choice]
        marks = [self._problems, self._marked, *form.outputs()]
        self._captioner.input(
            handler(self._choose),
            self._captioner,
            [self._model_row, self._model, self._fetch, self._more, *self._own],
            **_QUIET,
        )
        form.send(partial(gr.on, form.events()), self._check, given, marks, trigger_mode="always_last", **_QUIET)
        followed = [*self._job.parts, self._result]
        for button, preview in ((self._try, True), (self._start, False)):
            begin = partial(self._begin, preview=preview)
            form.send(button.click, begin, given, [*marks, *followed], trigger_mode="once", show_progress="hidden")
        self._fetch.click(handler(self._download), [self._captioner, self._model], followed, show_progress="hidden")
        self._job.wire(self._ended, [self._captioner], [self._result, self._model, self._shared.changed])
        self._shared.on_show(self._show, [self._job.run], followed)

    def _choose(self, captioner: str) -> dict[Any, Any]:
        shown = groups_of(captioner)
        choices = self._service.models(captioner)
        return {
            self._model_row: gr.update(visible=self._service.has_model(captioner)),
            self._model: gr.update(choices=choices, value=choices[0][1] if choices else ""),
            self._fetch: gr.update(visible=self._service.can_download(captioner)),
            self._more: gr.update(visible=bool(set(shown) & self._groups_with_more)),
            **{field: gr.update(visible=group in shown) for field, group in self._own.items() if group in _GROUPS},
        }

    def _check(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        return self._mark(self._service.faults(self._form.read(raw)), raw)

    def _mark(self, findings: list[Finding], raw: dict[Any, Any]) -> dict[Any, Any]:
        updates, marked = self._form.mark(findings, raw[self._marked])
        text = html.escape(self._form.summary(findings)).replace("\n", "<br>")
        return {
            self._problems: f'<div class="problems">{text}</div>' if findings else "",
            self._marked: marked,
            **updates,
        }

    def _begin(self, raw: dict[Any, Any], *, preview: bool) -> dict[Any, Any]:
        try:
            run_id = self._service.start(raw[self._shared.choice] or "", self._form.read(raw), preview=preview)
        except ConfigError as error:
            return self._mark(list(error.findings), raw)
        return {**self._mark([], raw), **self._follow(run_id)}

    def _download(self, captioner: str, model: str) -> dict[Any, Any]:
        return self._follow(self._service.download(captioner, (model or "").strip()))

    def _follow(self, run_id: str) -> dict[Any, Any]:
        return {**self._job.follow(run_id), self._result: ""}

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(self, name: str, run_id: str) -> dict[Any, Any]:
        """Follow what works on this data set, also where another page or the command line began it."""
        found = self._job.working("caption", name)
        if found and found != run_id:
            return self._follow(found)
        if run_id and not self._job.is_about(run_id, name):
            return {**self._job.forget(), self._result: ""}
        return {self._status: gr.skip()}

    def _ended(self, row: JobRow, history: History, captioner: str) -> dict[Any, Any]:
        updates: dict[Any, Any] = {}
        if row.kind == "download":
            updates[self._model] = gr.update(choices=self._service.models(captioner))
        elif row.state is RunState.FINISHED:
            updates[self._result] = self._said(history.result)
        if row.kind == "caption" and (row.state is not RunState.FINISHED or history.result.get("captioned")):
            updates[self._shared.changed] = news()
        return updates

    def _said(self, result: Mapping[str, Any]) -> str:
        rows = []
        for said in self._service.said(str(result["dataset"]), result):
            image = f'<img src="{render.file_url(said.thumbnail)}" alt="">' if said.thumbnail else "<span>✕</span>"
            before = f'<div class="hint">before: {render.text(said.before)}</div>' if said.before else ""
            words = render.text(said.caption) if said.caption else "<i>nothing to say</i>"
            rows.append(
                f'<div class="caption-row"><div class="caption-picture">{image}</div><div class="caption-side">'
                f'<div class="caption-head"><span class="picture-name">{render.text(said.picture)}</span></div>'
                f"<div>{words}</div>{before}</div></div>"
            )
        line = f'<div class="plan-line" role="status">{render.text(result["summary"])}.</div>'
        return f'{line}<div class="caption-rows">{"".join(rows)}</div>'


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    CaptionSection(services, page)
