"""The form holds every setting once, and takes it there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app.fields import from_widget, info, label, make_widget, to_widget
from app.form import Form
from app.page import build_page
from app.services.context import Services
from app.tabs import train
from trainer.config.base import Level
from trainer.config.concept import ConceptConfig
from trainer.config.fields import describe
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_config, flatten
from trainer.config.run import RunConfig
from trainer.errors import ConfigError, Finding
from trainer.paths import DataFolder


def full_form() -> Form:
    with gr.Blocks():
        form = Form(describe(), "t")
        form.place_groups(Level.BASIC)
        form.place_groups(Level.ADVANCED)
    return form


def test_every_setting_is_placed_once_in_the_train_tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Form] = []

    class Recorded(Form):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            forms.append(self)

    monkeypatch.setattr(train, "Form", Recorded)
    build_page(Services(DataFolder(tmp_path)))
    (form,) = forms
    # `adopt` refuses a second widget for a path, so being there is being there once.
    assert set(form.widgets) | set(form.fixed) == {spec.path for spec in describe()}
    assert not set(form.widgets) & set(form.fixed)


def test_a_fault_is_told_with_the_section_that_its_field_stands_in() -> None:
    with gr.Blocks():
        form = Form(describe(), "t")
        form.place("training.steps")
        form.place_groups(Level.BASIC)
        form.place_groups(Level.ADVANCED)
    told = form.summary(
        [
            Finding("training.steps", "too many"),
            Finding("objective.huber_delta", "too small"),
            Finding("nowhere", "odd"),
        ]
    ).splitlines()
    # What stands at the top is in no section, whichever its group is.
    assert told == ["Steps: too many", "Noise and loss › Huber delta: too small", "nowhere: odd"]


def test_a_setting_cannot_be_placed_twice() -> None:
    with gr.Blocks():
        form = Form(describe(), "t")
        form.place("training.steps")
        with pytest.raises(ValueError, match=r"training\.steps"):
            form.place("training.steps")


def test_every_tab_is_built(tmp_path: Path) -> None:
    page = build_page(Services(DataFolder(tmp_path)))
    shown = [str(getattr(block, "value", "")) for block in page.blocks.values()]
    assert not [value for value in shown if "broken-tab" in value]


def test_no_handler_of_the_page_is_a_public_api(tmp_path: Path) -> None:
    page = build_page(Services(DataFolder(tmp_path)))
    assert {function.api_visibility for function in page.fns.values()} == {"private"}


def test_what_changes_a_watched_state_is_queued(tmp_path: Path) -> None:
    page = build_page(Services(DataFolder(tmp_path)))
    watched = {
        block
        for function in page.fns.values()
        for block, event in function.targets
        if event == "change" and isinstance(page.blocks.get(block), gr.State)
    }
    assert watched
    unheard = [f.name for f in page.fns.values() if not f.queue and any(o._id in watched for o in f.outputs)]
    assert unheard == []


def test_default_settings_survive_the_form() -> None:
    form = full_form()
    raw = {widget: to_widget(form.specs[path], form.specs[path].default) for path, widget in form.widgets.items()}
    assert build_config(form.read(raw)) == RunConfig()


def test_changed_settings_survive_the_form() -> None:
    form = full_form()
    values = flatten(RunConfig())
    changed = {
        "training.steps": 7,
        "training.seed": 2**62 + 1,
        "preview.prompts": ["a", "b, c"],
        "data.buckets": False,
        "schedule.kind": "linear",
        "optimizer.unet_learning_rate": 3e-5,
        "note": "wörter",
        "data.resolutions": [768, 1024],
        "data.concepts": [
            ConceptConfig(dataset="a", trigger_word="zib", repeats=3, weight=0.5, use_captions=False).model_dump()
        ],
    }
    raw = {w: to_widget(form.specs[path], (values | changed)[path]) for path, w in form.widgets.items()}
    read = flatten(build_config(form.read(raw)))
    assert {path: read[path] for path in changed} == changed


def test_a_table_of_concepts_takes_rows_as_a_browser_sends_them() -> None:
    form = full_form()
    spec = form.specs["data.concepts"]
    rows = [
        ["robot", "zib", 2, "", "", None, True],
        ["", "", "", "", "", "", ""],
        ["cat", "", "3", 0.5, "a cat", "", False],
    ]
    assert from_widget(spec, rows) == [
        {"dataset": "robot", "trigger_word": "zib", "repeats": 2, "use_captions": True},
        {"dataset": "cat", "repeats": 3, "weight": 0.5, "instance_prompt": "a cat", "use_captions": False},
    ]
    assert from_widget(spec, []) == from_widget(spec, None) == []
    updates, marked = form.mark([Finding("data.concepts.1.dataset", "is not there")], [])
    assert marked == ["data.concepts"]
    assert updates[form.widgets["data.concepts"]]["label"] == "⚠ is not there"
    updates, _ = form.mark([], marked)
    assert updates[form.widgets["data.concepts"]]["label"] == "Further concepts"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.steps", None),
        ("training.steps", 2.5),
        ("training.seed", "abc"),
        ("training.seed", ""),
        ("adapter.unet.rank", 1000),
        ("optimizer.unet_learning_rate", float("nan")),
        ("schedule.kind", "none of these"),
    ],
)
def test_a_bad_value_is_a_finding_at_its_field(path: str, value: Any) -> None:
    form = full_form()
    raw = {w: to_widget(form.specs[p], form.specs[p].default) for p, w in form.widgets.items()}
    raw[form.widgets[path]] = value
    with pytest.raises(ConfigError) as caught:
        build_config(form.read(raw))
    assert {form.path_of(finding) for finding in caught.value.findings} == {path}


def test_marks_come_and_go() -> None:
    form = full_form()
    widget = form.widgets["training.steps"]
    updates, marked = form.mark([Finding("training.steps", "too many")], [])
    assert marked == ["training.steps"]
    assert updates[widget]["info"] == "⚠ too many"
    assert updates[widget]["elem_classes"] == ["has-error"]
    updates, marked = form.mark([], marked)
    assert marked == []
    assert updates[widget]["info"] == info(form.specs["training.steps"])
    assert set(updates) == {widget}


def test_a_finding_of_a_group_is_shown_at_one_of_its_fields() -> None:
    form = full_form()
    assert form.path_of(Finding("training", "no")).startswith("training.")
    assert form.path_of(Finding("training.no_such_field", "no")).startswith("training.")
    assert form.path_of(Finding("", "no")) == ""


SPECS = [spec for spec in describe() + describe(GenerateConfig) if spec.path != "loras"]  # that one is made by hand


@pytest.fixture(scope="module")
def widgets() -> list[Any]:
    """One of each field, on one page: a page each would take a second."""
    with gr.Blocks():
        return [make_widget(spec, f"x{index}") for index, spec in enumerate(SPECS)]


@pytest.mark.parametrize("index", range(len(SPECS)), ids=lambda index: SPECS[index].path)
def test_every_field_has_label_help_and_a_widget(index: int, widgets: list[Any]) -> None:
    spec, widget = SPECS[index], widgets[index]
    assert label(spec)
    assert spec.help in info(spec)
    assert from_widget(spec, widget.value) == spec.default or spec.kind == "list"
