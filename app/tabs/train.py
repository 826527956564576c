"""The Train tab: the form on the left, the run on the right."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import render
from app.fields import element_id, from_widget, info, label, to_widget
from app.form import Form
from app.links import Letter, Links
from app.messages import handler, note
from app.services.context import Services
from app.services.training import FIRST_PRESET, TrainingService
from app.tabs.train_run import RunView
from trainer.config.base import Level
from trainer.config.fields import describe
from trainer.config.loading import nest
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.record import CLASS_PICTURES
from trainer.errors import ConfigError, Finding

TITLE = "Train"
_PREFIX = "train"
_ESSENTIALS = (
    ("save.name", "data.trigger_word"),
    ("training.steps", "training.batch_size"),
    ("data.resolution", "training.seed"),
    ("adapter.unet.rank", "adapter.unet.alpha"),
    ("optimizer.unet_learning_rate", "optimizer.text_encoder_learning_rate"),
    ("adapter.text_encoder.rank", "adapter.text_encoder.alpha"),
    ("adapter.embedding.num_vectors",),
)
_DRAFT = "train-form"


class TrainTab:
    """One page's Train tab."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = TrainingService(services.data)
        self._settings = services.settings
        self._links = links
        self._form = Form(describe(), _PREFIX, self._service.first_values())
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=330):
                self._build_form()
            with gr.Column(scale=6, min_width=330):
                self._view = RunView(services, links)
        self._wire()

    def _build_form(self) -> None:
        form = self._form
        presets = [(preset.title, preset.name) for preset in self._service.presets()]
        # With a draft the form shows the draft, which no preset is.
        is_first = self._settings.get(_DRAFT) is None and FIRST_PRESET in dict(presets).values()
        self._preset = gr.Dropdown(
            presets,
            value=FIRST_PRESET if is_first else None,
            label="Preset",
            info="Choosing one fills the form below.",
            elem_id="train-preset",
            interactive=True,
        )
        with gr.Row(equal_height=False):
            self._base = form.adopt("model.base", self._choice("model.base"))
            self._dataset = form.adopt("data.dataset", self._choice("data.dataset"))
        for pair in _ESSENTIALS:
            with gr.Row(equal_height=False):
                for path in pair:
                    form.place(path, min_width=150)
        self._build_concepts()
        form.place("preview.prompts", lines=3)
        rest = [spec.path for spec in form.specs.values() if spec.level is Level.BASIC]
        for path in rest:
            if path not in form.widgets and path not in form.fixed:
                form.place(path)
        with gr.Accordion("Advanced", open=False, elem_id="train-advanced"):
            form.place_groups(Level.ADVANCED, below={"objective": self._build_timesteps})
        with gr.Column(elem_classes=["start-bar"], min_width=200):
            self._plan = gr.HTML("", elem_id="train-plan", elem_classes=["plan-line"], padding=False)
            self._problems = gr.HTML("", elem_id="train-problems", padding=False)
            self._start = gr.Button("Start training", variant="primary", elem_id="train-start")
        self._marked = gr.State([])

    def _build_concepts(self) -> None:
        spec = self._form.specs["data.concepts"]
        with gr.Accordion("More concepts in the same LoRA", open=False, elem_id="train-concepts-open"):
            self._more = gr.Dropdown(
                [],
                value=None,
                allow_custom_value=True,
                label="Add a data set",
                info=f"{info(spec)} Also the path of a folder, or of one with kohya's folders in it (10_robot, 5_cat).",
                elem_id="train-more-concepts",
                interactive=True,
            )
            self._form.place("data.concepts")
            self._fewer = gr.Button("Remove the last", size="sm", elem_id="train-fewer-concepts")

    def _build_timesteps(self) -> None:
        first = {path: self._form.shown_first(path) for path in self._form.specs if path.startswith("objective.")}
        shares = self._service.timestep_shares(nest(first)) or []
        self._timesteps = gr.HTML(render.timestep_chart(shares), elem_id="train-timesteps", padding=False)

    def _choice(self, path: str) -> gr.Dropdown:
        spec = self._form.specs[path]
        # A folder's path is as good as a name of the list.
        return gr.Dropdown(
            [],
            value=self._form.shown_first(path),
            allow_custom_value=True,
            label=label(spec),
            info=info(spec),
            elem_id=element_id(path, _PREFIX),
            interactive=True,
            min_width=200,
        )

    def _wire(self) -> None:
        form, links = self._form, self._links
        results = [self._plan, self._problems, self._marked, self._timesteps, *form.outputs()]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

        def check(trigger: Callable[..., Any]) -> None:
            form.send(trigger, self._check, [self._marked], results, trigger_mode="always_last", **quiet)

        check(partial(gr.on, form.events()))
        widgets = form.outputs()
        check(self._preset.input(handler(self._fill_preset), self._preset, widgets, **quiet).success)
        check(self._dataset.input(handler(self._fill_dataset), self._dataset, widgets, **quiet).success)
        check(self._base.input(handler(self._fill_base), self._base, widgets, **quiet).success)
        concepts = form.widgets["data.concepts"]
        more = [self._more, concepts]
        check(self._more.input(handler(self._add_concept), more, more, **quiet).success)
        check(self._fewer.click(handler(self._remove_concept), concepts, concepts, **quiet).success)
        for letter, receive, filled in (
            (links.dataset_for_train, self._receive_dataset, widgets),
            (links.recipe_for_train, self._receive_recipe, [self._preset, *widgets]),
            (links.base_for_train, self._receive_base, widgets),
        ):
            check(letter.change(handler(receive), letter, filled, **quiet).success)
        links.on_show(self._refresh, None, [self._preset, self._base, self._dataset, self._more])
        # The draft first, so that a reload does not lose what was typed; then what is wrong with it.
        check(links.page.load(handler(self._fill_draft), None, widgets, **quiet).success)
        begun = [*results, self._view.chosen, self._view.picker]
        self._view.poll.after(
            form.send(self._start.click, self._begin, [self._marked], begun, trigger_mode="once", **quiet)
        )

    def _refresh(self) -> tuple[Any, ...]:
        presets = [(preset.title, preset.name) for preset in self._service.presets()]
        bases = [(_with_problem(base.label, base.training_problem), base.name) for base in self._service.bases()]
        datasets = [(_dataset_label(item), item.name) for item in self._service.datasets()]
        return gr.update(choices=presets), gr.update(choices=bases), *[gr.update(choices=datasets)] * 2

    def _fill_draft(self) -> dict[Any, Any]:
        draft = self._settings.get(_DRAFT)
        return (self._form.fill(draft) if isinstance(draft, dict) else {}) or gr.skip()

    def _fill_preset(self, name: str | None) -> dict[Any, Any]:
        if not name:
            return gr.skip()
        values = self._service.preset_values(name)
        # What is yours stays: a preset is about how, not about what.
        own = ("data.dataset", "data.trigger_word", "data.concepts", "data.prior.dataset")
        own += ("save.name", "preview.prompts", "note")
        return self._form.fill({path: value for path, value in values.items() if path not in own})

    def _fill_dataset(self, name: str | None) -> dict[Any, Any]:
        values = self._service.dataset_values(name or "")
        return self._form.fill({path: value for path, value in values.items() if path != "data.dataset"}) or gr.skip()

    def _add_concept(self, name: str | None, rows: list[list[Any]]) -> tuple[Any, Any]:
        if not name:
            return gr.skip(), gr.skip()
        spec = self._form.specs["data.concepts"]
        records = [*from_widget(spec, rows), *self._service.concept_values(name)]
        return gr.update(value=None), gr.update(value=to_widget(spec, records))

    def _remove_concept(self, rows: list[list[Any]]) -> Any:
        spec = self._form.specs["data.concepts"]
        return gr.update(value=to_widget(spec, from_widget(spec, rows)[:-1]))

    def _receive_dataset(self, letter: Letter | None) -> dict[Any, Any]:
        if not letter:
            return gr.skip()
        return self._form.fill(self._service.dataset_values(str(Letter(*letter).content)))

    def _receive_recipe(self, letter: Letter | None) -> dict[Any, Any]:
        if not letter:
            return gr.skip()
        values = self._service.recipe_values(Path(str(Letter(*letter).content)))
        note("The settings that this LoRA was trained with are in the form.")
        return {self._preset: None, **self._form.fill(values)}

    def _fill_base(self, name: str | None) -> dict[Any, Any]:
        values = self._service.base_values(name or "")
        return self._form.fill({path: value for path, value in values.items() if path != "model.base"}) or gr.skip()

    def _receive_base(self, letter: Letter | None) -> dict[Any, Any]:
        if not letter:
            return gr.skip()
        return self._form.fill(self._service.base_values(str(Letter(*letter).content)))

    def _check(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        values = self._form.read(raw)
        self._settings.keep(_DRAFT, _flat(values))
        config, findings = self._service.check(values)
        plan = self._service.plan_text(config) if config else ""
        shares = self._service.timestep_shares(values)
        chart = {} if shares is None else {self._timesteps: render.timestep_chart(shares)}
        return {self._plan: html.escape(plan), **chart, **self._show(findings, raw[self._marked])}

    def _show(self, findings: list[Finding], marked: list[str]) -> dict[Any, Any]:
        updates, now_marked = self._form.mark(findings, marked)
        summary = html.escape(self._form.summary(findings)).replace("\n", "<br>")
        problems = f'<div class="problems"><b>Before it can start:</b><br>{summary}</div>' if findings else ""
        return {self._problems: problems, self._marked: now_marked, **updates}

    def _begin(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        values = self._form.read(raw)
        try:
            run_id = self._service.start(values)
        except ConfigError as error:
            if not error.findings:
                raise
            gr.Warning("Some settings need attention before the training can start.", duration=6)
            return self._show(list(error.findings), raw[self._marked])
        self._settings.save(_DRAFT, _flat(values))
        note("The training run is in the queue.")
        return {**self._show([], raw[self._marked]), **self._view.choose(run_id)}


def _dataset_label(info: DatasetInfo) -> str:
    role = " · class pictures" if info.role == CLASS_PICTURES else f" · × {info.repeats}" if info.repeats > 1 else ""
    return f"{info.title} ({info.num_pictures}){role}"


def _with_problem(title: str, problem: str) -> str:
    return f"{title} (cannot be used)" if problem else title


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    walk(values, "")
    return flat


def build(services: Services, links: Links) -> None:
    """Lay out and wire the tab."""
    TrainTab(services, links)
