"""The History section's widgets and the fields beside it, without a browser: what each answers to what a user does."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.links import make_links
from app.services.context import Services
from app.services.datasets import DatasetService
from app.tabs.dataset import DatasetTab
from app.tabs.dataset_bringing import Bringing
from app.tabs.dataset_fields import FetchFields, TrainingFields
from app.tabs.dataset_history import HistorySection
from app.tabs.dataset_page import DatasetPage
from tests import zoo
from trainer.dataset.versions import current_version, write_versions
from trainer.errors import DatasetError
from trainer.events import EventWriter, Finished, Started
from trainer.paths import DataFolder
from trainer.runs import Run, create_run


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(DataFolder(tmp_path / "data"))


@pytest.fixture
def section(services: Services, tmp_path: Path) -> HistorySection:
    zoo.good(tmp_path / "a.png", "a hill")
    DatasetService(services.data).store.create_from("ink", [tmp_path / "a.png", tmp_path / "a.txt"])
    with gr.Blocks():
        page = DatasetPage(gr.Dropdown(), gr.State(0.0), gr.State(""), gr.HTML(), gr.HTML(), Bringing(services))
        with gr.Tabs(), gr.Tab("History", id="history") as page.section:
            return HistorySection(services, page)


def test_a_change_is_chosen_compared_and_gone_back_to(section: HistorySection, services: Services) -> None:
    store = DatasetService(services.data).store
    store.set_caption("ink", "a.png", "<b>a lake</b>")
    shown = section._show("ink")
    assert [row[:2] for row in shown[section._table]] == [["● now", "Caption of a.png"], ["", "As it was at first"]]
    event: Any = SimpleNamespace(index=[1, 0])
    chosen = section._choose("ink", event)
    assert "1 thing differs from today." in chosen[section._diff]
    assert "&lt;b&gt;a lake&lt;/b&gt;" in chosen[section._diff]
    assert chosen[section._go]["interactive"] is True
    section._step("ink", chosen[section._chosen])
    assert store.caption_of("ink", "a.png") == "a hill"
    assert section._show("ink")[section._table][0][0] == "undone"
    assert section._show("")[section._table] == []


def test_a_run_is_compared_brought_back_and_copied(
    section: HistorySection, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    store = DatasetService(services.data).store
    config = {"data": {"dataset": "ink", "concepts": [], "prior": {"dataset": ""}}}
    run = create_run(services.data, "train", "first", config)
    write_versions(run.folder, [current_version(store, "ink")])
    store.set_caption("ink", "a.png", "a lake")
    assert section._show("ink")[section._run]["choices"] == [(f"first · {run.id}", run.id)]
    compared = section._compare("ink", run.id)
    assert "a.png: its caption was &#x27;a hill&#x27;, is &#x27;a lake&#x27;" in compared[section._diff]
    section._bring_back("ink", run.id)
    assert "Nothing differs from today." in section._compare("ink", run.id)[section._diff]
    bringing = section._page.bringing
    with pytest.raises(DatasetError, match="already a data set"):
        section._make_copy(bringing, "", "ink", run.id, "ink")
    copying = section._make_copy(bringing, "", "ink", run.id, "copy")[bringing.run]
    assert Run(services.data.runs / copying).config() == {"dataset": "ink", "run": run.id, "new_name": "copy"}
    # While it works a page that is opened finds it, and another import is refused.
    assert bringing.find("")[bringing.run] == copying
    assert bringing.find(copying) == {}
    assert section._make_copy(bringing, copying, "ink", run.id, "copy") == {}  # the second half of a double click
    with pytest.raises(DatasetError, match="being brought in already"):
        section._make_copy(bringing, copying, "ink", run.id, "other")
    later = time.time() + 60
    monkeypatch.setattr("app.tabs.dataset_bringing.time.time", lambda: later)
    with pytest.raises(DatasetError, match="being brought in already"):
        section._make_copy(bringing, copying, "ink", run.id, "copy")
    services.jobs.stop(copying)
    assert bringing.find("") == {}


def test_fields_keep_how_it_is_trained_and_refuse_an_empty_fetch(services: Services) -> None:
    service = DatasetService(services.data)
    service.store.create("ink")
    with gr.Blocks():
        fields, fetching = TrainingFields(service), FetchFields(services)
    fields._save("ink", "", 3, 0.5, " a  robot ")
    info = service.store.get("ink")
    assert (info.repeats, info.weight, info.instance_prompt) == (3, 0.5, "a robot")
    assert fields.show(info)[fields._repeats] == 3
    with pytest.raises(DatasetError, match="at least one address"):
        fetching._begin("ink", "  \n")
    run = create_run(services.data, "fetch", "t", {})
    following = fetching._job.follow(run.id)
    assert following[fetching._job.run] == run.id
    assert following[fetching._stop]["visible"] is True


@pytest.fixture
def tab(services: Services) -> DatasetTab:
    with gr.Blocks() as page:
        tabs = gr.Tabs(render=False)
        links = make_links(page, tabs)
        tabs.render()
        with tabs, gr.Tab("Dataset", id="dataset") as links.current:
            return DatasetTab(services, links)


def test_one_that_cannot_be_opened_shows_nothing_of_the_one_before(
    tab: DatasetTab, services: Services, tmp_path: Path
) -> None:
    store = DatasetService(services.data).store
    zoo.good(tmp_path / "a.png", "a hill")
    record = store.create_from("<b>", [tmp_path / "a.png"], trigger_word="zsy", training={"repeats": 7})[0].record
    assert record is not None
    before = tab._open(record.name)
    assert (before[tab._trigger], before[tab._training.parts[1]]) == ("zsy", 7)
    (record / "dataset.json").write_text("{", encoding="utf-8")
    shown = tab._open(record.name)
    assert shown.keys() == before.keys()
    assert "cannot be opened" in shown[tab._page.summary]
    assert "Repair it, or move it away" in shown[tab._page.summary]
    assert (shown[tab._trigger], shown[tab._about], shown[tab._training.parts[1]]) == ("", "", 1)
    assert shown[tab._page.problems]["visible"] is False
    assert shown[tab._train]["interactive"] is False
    assert shown[tab._delete]["visible"] is True


def test_fields_are_emptied_when_the_job_went_well_unless_they_hold_the_next(
    tab: DatasetTab, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("app.tabs.job_follower.JobFollower.wire", lambda self, on_end, *_: ended.append(on_end))
    fields = (tab._new_name, tab._new_trigger, tab._drop)
    with gr.Blocks():
        bringing = Bringing(services)
    bringing.empties("new", *fields)
    bringing.wire(tab._offer, tab._choice, tab._page.changed)
    DatasetService(services.data).store.create("ink")
    config = {"dataset": "ink", "is_new": True, "trigger_word": "", "sources": [{"path": "a.png"}]}
    run = create_run(services.data, "import", "t", config)
    writer = EventWriter(run.events_path)
    writer(Started(pid=1))
    writer(Finished(result={"datasets": ["ink"], "summary": "s", "left_out": ["a", "b"], "num_left_out": 2}))
    writer.close()
    told: list[str] = []
    monkeypatch.setattr("app.tabs.dataset_bringing.note", told.append)
    monkeypatch.setattr("app.tabs.dataset_page.note", told.append)
    row, history = services.jobs.row(run.id), services.jobs.history(run.id)
    updates = ended[0](row, history, None, " ink ")
    assert [updates[field] for field in fields] == ["", "", None]
    assert updates[tab._choice]["value"] == "ink"
    assert told == ["s", "Left out: a; b"]
    assert not set(fields) & ended[0](row, history, None, "the next").keys()
