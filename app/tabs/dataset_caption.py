"""Captions by a captioner: its settings, a try on three pictures, and the run that writes them into the data set."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from app import render
from app.form import Form, element_id, info
from app.messages import handler, note
from app.services.captioning import CaptionService
from app.services.context import Services
from app.tabs.dataset_page import DatasetPage, news
from trainer.config.base import Level
from trainer.config.caption import CaptionConfig, groups_of
from trainer.config.fields import describe
from trainer.errors import ConfigError, Finding, RunError
from trainer.runs import RunState

TITLE = "Caption"
_PREFIX = "caption"
_POLL_SECONDS = 1.0
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_LOOKED_AT = 20
_GROUPS = ("tags", "tagger", "blip", "florence2", "server")


class CaptionSection:
    """One page's Caption section. Which run is followed is kept in the browser."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service, self._jobs, self._shared = CaptionService(services.data), services.jobs, page
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
        with gr.Row(visible=False, equal_height=False) as self._model_row:
            model = gr.Dropdown(
                [],
                value="",
                allow_custom_value=True,
                label="Model",
                info=info(self._form.specs["model"]),
                elem_id=element_id("model", _PREFIX),
                interactive=True,
                scale=4,
            )
            self._model = self._form.adopt("model", model)
            self._fetch = gr.Button("Download it", elem_id="caption-fetch", scale=0, **_SMALL)
        with gr.Row(equal_height=False):
            self._form.place("existing", min_width=260)
            self._form.place("wording.guide", min_width=260)

    def _lay_out_groups(self) -> None:
        self._groups: dict[str, gr.Column] = {}
        shown = groups_of(self._form.specs["captioner"].default)
        for group in _GROUPS:
            with gr.Column(visible=group in shown, elem_id=f"caption-group-{group}") as self._groups[group]:
                self._place(group, Level.BASIC)
                if any(self._fields(group, Level.ADVANCED)):
                    with gr.Accordion("More", open=False, elem_id=f"caption-more-{group}"):
                        self._place(group, Level.ADVANCED)
        with gr.Accordion("Words: leave out, replace, put around", open=False, elem_id="caption-wording"):
            self._place("wording", Level.BASIC)

    def _fields(self, group: str, level: Level) -> list[str]:
        placed = self._form.widgets
        return [
            p for p, spec in self._form.specs.items() if spec.group == group and spec.level is level and p not in placed
        ]

    def _place(self, group: str, level: Level) -> None:
        paths = self._fields(group, level)
        for index in range(0, len(paths), 2):
            with gr.Row(equal_height=False):
                for path in paths[index : index + 2]:
                    self._form.place(path, min_width=260)

    def _lay_out_start(self) -> None:
        self._problems = gr.HTML("", elem_id="caption-problems", padding=False)
        with gr.Row():
            self._try = gr.Button("Try on three pictures", elem_id="caption-try", **_SMALL)
            self._start = gr.Button("Caption", variant="primary", elem_id="caption-start", **_SMALL)
            self._cancel = gr.Button("Stop", visible=False, elem_id="caption-cancel", **_SMALL)
        self._status = gr.HTML("", elem_id="caption-status", padding=False)
        self._result = gr.HTML("", elem_id="caption-result", padding=False)
        self._marked = gr.State([])
        self._run = gr.State("")
        self._seen = gr.State([])
        # Ticks only while a run of this section is followed.
        self._clock = gr.Timer(_POLL_SECONDS, active=False)

    # --- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        form, choice = self._form, self._shared.choice
        given = {self._marked, choice, *form.inputs()}
        marks = [self._problems, self._marked, *form.outputs()]
        self._captioner.input(
            handler(self._choose),
            self._captioner,
            [self._model_row, self._model, self._fetch, *self._groups.values()],
            **_QUIET,
        )
        gr.on(form.events(), handler(self._check), given, marks, trigger_mode="always_last", **_QUIET)
        followed = [self._run, self._clock, self._cancel, self._status, self._result, self._seen]
        for button, preview in ((self._try, True), (self._start, False)):
            button.click(
                handler(lambda raw, preview=preview: self._begin(raw, preview=preview)),
                given,
                [*marks, *followed],
                trigger_mode="once",
                show_progress="hidden",
            )
        self._fetch.click(handler(self._download), [self._captioner, self._model], followed, **_QUIET)
        self._cancel.click(handler(self._stop), self._run, None, **_QUIET)
        poll = [self._clock, self._cancel, self._status, self._result, self._seen, self._model, self._shared.changed]
        self._clock.tick(handler(self._poll), [self._run, self._seen, self._captioner], poll, show_progress="hidden")
        self._shared.on_show(self._show, [self._run], followed)

    def _choose(self, captioner: str) -> dict[Any, Any]:
        shown = groups_of(captioner)
        choices = self._service.models(captioner)
        return {
            self._model_row: gr.update(visible=self._service.has_model(captioner)),
            self._model: gr.update(choices=choices, value=choices[0][1] if choices else ""),
            self._fetch: gr.update(visible=self._service.can_download(captioner)),
            **{column: gr.update(visible=group in shown) for group, column in self._groups.items()},
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
        return {
            self._run: run_id,
            self._seen: [],
            self._clock: gr.Timer(active=True),
            self._cancel: gr.update(visible=True),
            self._status: '<div class="hint">Waiting for its turn…</div>',
            self._result: "",
        }

    def _stop(self, run_id: str) -> None:
        self._jobs.stop(run_id)
        note("It stops; what is captioned stays.")

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(self, name: str, run_id: str) -> dict[Any, Any]:
        """Follow what works on this data set, also where another page or the command line began it."""
        ids = self._jobs.ids("caption")[:_LOOKED_AT]
        found = next(
            (found for found in ids if self._is_about(found, name) and not self._jobs.row(found).state.is_over), ""
        )
        if found and found != run_id:
            return self._follow(found)
        if run_id and not self._is_about(run_id, name):
            return {self._run: "", self._status: "", self._result: "", self._cancel: gr.update(visible=False)}
        return {self._status: gr.skip()}

    def _is_about(self, run_id: str, name: str) -> bool:
        try:
            return self._jobs.run(run_id).config().get("dataset", name) == name
        except RunError:
            return False

    def _poll(self, run_id: str, seen: list[Any], captioner: str) -> Any:
        if not run_id:
            return {self._clock: gr.Timer(active=False)}
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        now = [run_id, row.state.value, history.num_events]
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {self._seen: now, self._status: render.status(row, history)}
        if row.state.is_over:
            updates |= {self._clock: gr.Timer(active=False), self._cancel: gr.update(visible=False)}
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
            shown = f'<img src="{render.file_url(said.thumbnail)}" alt="" width="96">' if said.thumbnail else ""
            before = f'<div class="hint">before: {render.text(said.before)}</div>' if said.before else ""
            words = render.text(said.caption) if said.caption else "<i>nothing to say</i>"
            rows.append(
                f'<tr><td>{shown}</td><td><div class="hint">{render.text(said.picture)}</div>{words}{before}</td></tr>'
            )
        line = f'<div class="plan-line">{render.text(result["summary"])}.</div>'
        return f'{line}<table class="caption-said">{"".join(rows)}</table>'


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    CaptionSection(services, page)
