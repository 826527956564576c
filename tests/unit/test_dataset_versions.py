"""What a run was trained on is written down exactly, compared with today, and brought back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import zoo
from trainer.cli.main import main
from trainer.config.run import RunConfig
from trainer.data.examples import Concept
from trainer.dataset.restoring import restore_as_new, restore_in_place
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import (
    DatasetVersion,
    current_version,
    differences,
    read_versions,
    write_versions,
)
from trainer.errors import DatasetError
from trainer.paths import DataFolder
from trainer.runs import Run, create_run
from trainer.training.data_record import record_datasets


@pytest.fixture
def ink(store: DatasetStore, tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, word in enumerate(("hill", "lake", "tree"), start=1):
        zoo.good(folder / f"{word}.png", f"a {word}", seed=index)
    zoo.noise(seed=7).save(folder / "tree-masklabel.png")
    return store.create_from("墨", [folder], trigger_word="zsy")[0].name


def captions(store: DatasetStore, name: str) -> dict[str, str | None]:
    return {facts.name: facts.caption for facts in store.scan(name).pictures}


def kinds(before: DatasetVersion, after: DatasetVersion) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in differences(before, after)]


def test_a_version_is_the_same_when_read_back_and_its_hash_follows_what_is_trained(
    store: DatasetStore, ink: str, tmp_path: Path
) -> None:
    version = current_version(store, ink)
    assert set(version.pictures) == {"hill.png", "lake.png", "tree.png"}
    assert version.pictures["tree.png"].mask
    assert version.pictures["tree.png"].caption == "a tree"
    write_versions(tmp_path, [version])
    (again,) = read_versions(tmp_path)
    assert again == version
    assert json.loads((tmp_path / "datasets.json").read_text())["sets"][0]["sha256"] == version.sha256
    store.change(ink, "Title", {("settings", "title"): "Another"})
    assert current_version(store, ink).sha256 == version.sha256
    store.set_caption(ink, "hill.png", "a mountain")
    assert current_version(store, ink).sha256 != version.sha256
    store.undo(ink)
    assert current_version(store, ink).sha256 == version.sha256
    store.remove_pictures(ink, ["lake.png"])
    assert current_version(store, ink).sha256 != version.sha256


def test_differences_name_each_thing(store: DatasetStore, ink: str) -> None:
    before, folder = current_version(store, ink), store.get(ink).folder
    store.set_caption(ink, "hill.png", "a mountain")
    zoo.good(folder / "lake.png", seed=99)
    for ending in (".png", ".txt", "-masklabel.png"):
        (folder / f"tree{ending}").rename(folder / f"oak{ending}")
    zoo.good(folder / "new.png", "new", seed=50)
    store.set_trigger_word(ink, "ink")
    after = current_version(store, ink)
    assert kinds(before, after) == [
        ("caption", "hill.png"),
        ("picture", "lake.png"),
        ("added", "new.png"),
        ("renamed", "oak.png"),
        ("setting", "trigger word"),
    ]
    lines = [str(one) for one in differences(before, after)]
    assert lines[0] == "hill.png: its caption was 'a hill', is 'a mountain'"
    assert differences(after, after) == []


def test_restoring_is_one_change_that_can_be_undone_and_touches_no_file(store: DatasetStore, ink: str) -> None:
    before, folder = current_version(store, ink), store.get(ink).folder
    store.set_caption(ink, "hill.png", "a mountain")
    store.remove_pictures(ink, ["lake.png"])
    store.set_trigger_word(ink, "other")
    (folder / "tree.txt").write_text("another caption")
    (folder / "hill.png").rename(folder / "peak.png")
    zoo.good(folder / "new.png", "new", seed=50)
    messy, files = current_version(store, ink), sorted(path.name for path in folder.rglob("*.png"))
    restored = restore_in_place(store, before, "Back to a run")
    assert (restored.has_changed, restored.num_pictures, restored.problems) == (True, 3, ())
    assert captions(store, ink) == {"peak.png": "a hill", "lake.png": "a lake", "tree.png": "a tree"}
    assert store.get(ink).trigger_word == "zsy"
    assert [one.kind for one in differences(before, current_version(store, ink))] == ["renamed"]
    assert sorted(path.name for path in folder.rglob("*.png")) == files
    assert not restore_in_place(store, before, "Again").has_changed
    change = store.undo(ink)
    assert change is not None
    assert change.title == "Back to a run"
    assert differences(messy, current_version(store, ink)) == []


def test_what_is_gone_or_changed_is_named(store: DatasetStore, ink: str) -> None:
    before, folder = current_version(store, ink), store.get(ink).folder
    (folder / "lake.png").unlink()
    zoo.good(folder / "hill.png", seed=77)
    restored = restore_in_place(store, before, "Back")
    assert [str(problem) for problem in restored.problems] == [
        "hill.png: the file was changed since; it stays as it is now",
        "lake.png: its file is gone",
    ]
    for path in folder.glob("*.png"):
        path.unlink()
    zoo.good(folder / "else.png", seed=78)
    with pytest.raises(DatasetError, match="None of the pictures"):
        restore_in_place(store, before, "Back")


def test_a_new_data_set_is_made_of_a_version_even_out_of_the_trash(
    store: DatasetStore, data: DataFolder, ink: str
) -> None:
    folder = store.get(ink).folder
    (folder / "lake.txt").write_text("a lake\nwater\n")
    training = {"role": "class_pictures", "repeats": 7, "weight": 0.0, "instance_prompt": "a robot"}
    store.set_training(ink, training)
    before = current_version(store, ink)
    store.set_caption(ink, "hill.png", "a mountain")
    store.remove_pictures(ink, ["tree.png"])
    store.discard_left_out(ink)
    restored = restore_as_new(store, data, before, "old")
    assert (restored.num_pictures, restored.problems) == (3, ())
    assert current_version(store, "old").sha256 == before.sha256
    old = store.get("old")
    assert (old.trigger_word, old.title) == ("zsy", "old")
    assert {key: getattr(old, key) for key in training} == training
    assert captions(store, ink) == {"hill.png": "a mountain", "lake.png": "a lake water"}
    store.delete(ink)
    assert restore_as_new(store, data, before, "older").num_pictures == 3
    assert not list(data.datasets.glob(".tmp*"))
    with pytest.raises(DatasetError, match="already"):
        restore_as_new(store, data, before, "old")


def test_a_run_keeps_what_it_began_with(store: DatasetStore, data: DataFolder, ink: str) -> None:
    run = create_run(data, "train", "t", {})
    config = RunConfig.model_validate({"data": {"dataset": ink}})

    def record() -> None:
        pictures = store.scan(ink).usable
        record_datasets(run, config, data, [Concept("", pictures, config.data.all_concepts[0])])

    record()
    first = read_versions(run.folder)[0].sha256
    store.set_caption(ink, "hill.png", "other")
    record()
    changed = read_versions(run.folder)[0].sha256
    assert changed != first
    (run.checkpoints / "step-000001").mkdir(parents=True)
    store.undo(ink)
    record()
    assert read_versions(run.folder)[0].sha256 == changed


def made_run(store: DatasetStore, data: DataFolder, ink: str) -> Run:
    run = create_run(data, "train", "t", {"data": {"dataset": ink}})
    write_versions(run.folder, [current_version(store, ink)])
    return run


def test_the_command_line_compares_and_restores(
    store: DatasetStore, data: DataFolder, ink: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(store, data, ink)
    place = ["--data-dir", str(data.root)]
    assert main(["dataset", "diff", run.id, *place]) == 0
    assert "nothing has changed since" in capsys.readouterr().out
    store.set_caption(ink, "hill.png", "a mountain")
    assert main(["dataset", "diff", run.id, "--json", *place]) == 0
    found = json.loads(capsys.readouterr().out)["sets"][0]["differences"]
    assert found == [{"kind": "caption", "name": "hill.png", "before": "a hill", "after": "a mountain"}]
    assert main(["dataset", "restore", run.id, *place]) == 0
    assert "3 pictures, restored" in capsys.readouterr().out
    assert store.caption_of(ink, "hill.png") == "a hill"
    assert main(["dataset", "restore", run.id, "--new", "copy", *place]) == 0
    assert store.get("copy").num_pictures == 3
    assert main(["dataset", "diff", run.id, "--set", "nothing", *place]) == 2
    assert main(["dataset", "diff", *place]) == 2
    assert main(["dataset", "dif", run.id, *place]) == 2
    old = create_run(data, "train", "old", {})
    assert main(["dataset", "diff", old.id, *place]) != 0
    assert "did not write down" in capsys.readouterr().err
