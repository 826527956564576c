"""Folders of other programs come in as data sets that know how they are trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from app.services.dataset_history import DatasetHistoryService
from app.services.training import TrainingService
from tests import zoo
from trainer.cli.commands.train import with_trigger_word
from trainer.cli.main import main
from trainer.config.loading import merge
from trainer.dataset.bringing import bring_in, link_all
from trainer.dataset.dropped import Dropped, Source
from trainer.dataset.record import CLASS_PICTURES
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import current_version, write_versions
from trainer.errors import DatasetError
from trainer.paths import DataFolder
from trainer.runs import create_run


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    folder = tmp_path / "robots"
    for index, name in enumerate(("img/10_zib robot", "img/5_kol cat", "reg/1_robot")):
        (folder / name).mkdir(parents=True)
        zoo.good(folder / name / "a.png", "its own" if index == 1 else None, seed=index)
    return folder


@pytest.mark.parametrize("is_zip", [False, True])
def test_kohyas_folders_become_data_sets_with_roles_and_repeats(
    store: DatasetStore, data: DataFolder, kohya: Path, is_zip: bool
) -> None:
    source = Path(shutil.make_archive(str(kohya), "zip", kohya.parent, kohya.name)) if is_zip else kohya
    brought = bring_in(store, data, "mine", [source], trigger_word="zib")
    facts = {info.title: (info.role, info.repeats, info.instance_prompt, info.class_prompt) for info in brought.sets}
    assert facts == {
        "mine zib robot": ("", 10, "zib robot", ""),
        "mine kol cat": ("", 5, "kol cat", ""),
        "mine robot (class pictures)": (CLASS_PICTURES, 1, "robot", ""),
    }
    assert [info.num_pictures for info in brought.sets] == [1, 1, 1]
    assert not list(data.datasets.glob(".*"))
    service = TrainingService(data)
    assert service.dataset_values("mine zib robot") == {
        "data.dataset": "mine zib robot",
        "data.trigger_word": "",
        "data.repeats": 10,
        "data.weight": 1.0,
        "data.instance_prompt": "zib robot",
    }
    assert service.concept_values("mine kol cat") == [
        {"dataset": "mine kol cat", "trigger_word": "", "repeats": 5, "instance_prompt": "kol cat"}
    ]
    with pytest.raises(DatasetError, match="class pictures"):
        service.concept_values("mine robot (class pictures)")
    asked = {"data": {"dataset": "mine zib robot", "concepts": ["mine kol cat; repeats=2"]}}
    found = with_trigger_word(asked, data)["data"]
    assert (found["repeats"], found["instance_prompt"]) == (10, "zib robot")
    assert found["concepts"][0]["repeats"] == "2"
    assert found["concepts"][0]["instance_prompt"] == "kol cat"


def test_a_numbered_folder_that_is_chosen_itself_says_the_same(
    store: DatasetStore, data: DataFolder, kohya: Path
) -> None:
    brought = bring_in(store, data, "robot", [kohya / "img" / "10_zib robot"])
    info = brought.sets[0]
    assert (info.name, info.repeats, info.instance_prompt, info.role) == ("robot", 10, "zib robot", "")
    assert "“zib robot” stands for captions that are missing and each picture counts 10 times" in brought.summary()
    assert bring_in(store, data, "reg", [kohya / "reg" / "1_robot"]).sets[0].role == CLASS_PICTURES


def test_pictures_are_added_on_the_command_line(
    data: DataFolder, kohya: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-dir", str(data.root)]
    assert main(["dataset", "import", "mine", str(kohya / "img" / "5_kol cat"), *place]) == 0
    more = str(zoo.good(kohya / "b.png", None, seed=9))
    assert main(["dataset", "import", "mine", more, *place]) != 0
    assert main(["dataset", "import", "mine", more, "--add", *place]) == 0
    assert "mine: 1 picture added." in capsys.readouterr().out
    assert DatasetStore(data).get("mine").num_pictures == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crops", "ink-wash", "--accept"], "--accept is for crops that are proposed"),
        (["crops", "ink-wash", "--fill", "white"], "--fill is no option of `inkwash dataset crops`"),
        (["masks", "ink-wash", "--fill", "nonsense"], "nonsense"),
        (["masks", "ink-wash", "--fill", "white"], "No picture has a mask"),
        (["ink-wash", "--undo"], "--undo is no option of `inkwash dataset ink-wash`"),
        (["import", "x", "y", "--apply"], "--apply is no option"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    data: DataFolder, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["dataset", *words, "--data-dir", str(data.root)]) in (2, 3)
    assert message in capsys.readouterr().err


def test_progress_says_which_folder_it_is_about(store: DatasetStore, data: DataFolder, kohya: Path) -> None:
    stages: list[str] = []
    bring_in(store, data, "mine", [kohya], progress=lambda stage, done, total: stages.append(stage))
    copying = [stage for stage in dict.fromkeys(stages) if stage.startswith("Copying")]
    assert copying == [
        "Copying pictures (folder 1 of 3, '10_zib robot')",
        "Copying pictures (folder 2 of 3, '5_kol cat')",
        "Copying pictures (folder 3 of 3, '1_robot')",
    ]


def test_class_pictures_say_what_they_show(store: DatasetStore, data: DataFolder, kohya: Path) -> None:
    bring_in(store, data, "mine", [kohya])
    prior = {"dataset": "mine robot (class pictures)"}
    values = {"model": {"base": "x"}, "data": {"dataset": "mine zib robot", "prior": prior}}
    config, _ = TrainingService(data).check(values)
    assert config is not None
    assert config.data.prior.class_prompt == "robot"
    config, _ = TrainingService(data).check(merge(values, {"data": {"prior": {"class_prompt": "a robot"}}}))
    assert config is not None
    assert config.data.prior.class_prompt == "a robot"
    store.set_training("mine robot (class pictures)", {"instance_prompt": None})
    _, findings = TrainingService(data).check(values)
    assert [finding.where for finding in findings] == ["data.prior.class_prompt"]


def test_after_an_error_none_of_the_sets_is_there(store: DatasetStore, data: DataFolder, kohya: Path) -> None:
    store.create("mine kol cat")
    with pytest.raises(DatasetError, match="already"):
        bring_in(store, data, "mine", [kohya])
    assert [info.name for info in store.list() if not info.is_bundled] == ["mine kol cat"]


def test_kohyas_folders_are_linked_one_by_one(store: DatasetStore, kohya: Path) -> None:
    linked = link_all(store, kohya).sets
    assert [(info.repeats, info.role) for info in linked] == [(10, ""), (5, ""), (1, CLASS_PICTURES)]
    assert all(info.is_linked for info in linked)
    assert [info.instance_prompt for info in linked] == ["zib robot", "kol cat", "robot"]
    assert len(link_all(store, kohya / "img" / "5_kol cat").sets) == 1


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of which some lie in folders that only look like kohya's."""
    folder = tmp_path / "ink"
    for number, name in enumerate(("a.png", "b.png", "2_sketches/c.png", "2023_holiday/d.png", "x/01_january/e.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        zoo.good(folder / name, seed=number)
    return folder


@pytest.mark.parametrize("form", ["folder", "zip", "dropped"])
def test_numbered_folders_among_other_pictures_are_folders_like_any(
    store: DatasetStore, data: DataFolder, mixed: Path, form: str
) -> None:
    sources: list[Source] = [mixed]
    if form == "zip":
        sources = [shutil.make_archive(str(mixed), "zip", mixed.parent, mixed.name)]
    if form == "dropped":
        sources = dropped(mixed)
    brought = bring_in(store, data, "mine", sources)
    assert [(info.title, info.num_pictures, info.repeats) for info in brought.sets] == [("mine", 5, 1)]
    assert (brought.left_out, brought.summary()) == ((), "5 pictures added.")
    assert not list(data.datasets.glob(".*"))


def dropped(folder: Path) -> list[Source]:
    """A folder as a browser gives it: each file in a place of its own, with its name relative to what was chosen."""
    found: list[Source] = []
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        place = folder.parent / "uploads" / str(number) / path.name
        place.parent.mkdir(parents=True)
        shutil.copy(path, place)
        found.append(Dropped(place, path.relative_to(folder.parent).as_posix()))
    return found


def test_numbered_folders_among_other_pictures_are_linked_as_one(store: DatasetStore, mixed: Path) -> None:
    (info,) = link_all(store, mixed).sets
    assert (info.folder, info.num_pictures) == (mixed, 5)


@pytest.mark.parametrize("names", [("2023_holiday", "2024_holiday"), ("01_january", "02_february")])
def test_folders_of_years_and_months_are_no_repeats(
    store: DatasetStore, data: DataFolder, tmp_path: Path, names: tuple[str, str]
) -> None:
    for number, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        zoo.good(tmp_path / "photos" / name / "a.png", seed=number)
    brought = bring_in(store, data, "mine", [tmp_path / "photos"])
    assert [(info.num_pictures, info.repeats) for info in brought.sets] == [(2, 1)]


def test_what_kohyas_scripts_write_is_left_out_with_a_word(store: DatasetStore, data: DataFolder, kohya: Path) -> None:
    (kohya / "model" / "sample").mkdir(parents=True)
    zoo.good(kohya / "model" / "sample" / "s.png", seed=9)
    (kohya / "img" / "metadata.json").write_text("{}")
    (kohya / "img" / "3_empty").mkdir()
    brought = bring_in(store, data, "mine", [kohya])
    assert [info.num_pictures for info in brought.sets] == [1, 1, 1]
    assert sorted(finding.where for finding in brought.left_out) == ["img/metadata.json", "model/sample/s.png"]
    assert brought.summary().endswith("2 left out.")
    assert len(link_all(store, kohya).left_out) == 2


@pytest.mark.parametrize("is_dropped", [False, True])
def test_kohyas_folders_of_one_name_get_numbers(
    store: DatasetStore, data: DataFolder, tmp_path: Path, is_dropped: bool
) -> None:
    for number, name in enumerate(("10_robot", "5_robot", "2_Robot")):
        (tmp_path / "set" / name).mkdir(parents=True)
        zoo.good(tmp_path / "set" / name / "a.png", f"caption {name}", seed=number)
    sources = dropped(tmp_path / "set") if is_dropped else [tmp_path / "set"]
    brought = bring_in(store, data, "Koh", sources)
    facts = {info.title: (info.repeats, store.caption_of(info.name, "a.png")) for info in brought.sets}
    assert facts == {
        "Koh robot": (10, "caption 10_robot"),
        "Koh Robot 2": (2, "caption 2_Robot"),
        "Koh robot 3": (5, "caption 5_robot"),
    }


def test_how_it_is_trained_can_be_changed_and_undone(store: DatasetStore) -> None:
    store.create("a")
    assert store.set_training("a", {"repeats": 3, "weight": 0.5, "role": CLASS_PICTURES})
    info = store.get("a")
    assert (info.repeats, info.weight, info.role) == (3, 0.5, CLASS_PICTURES)
    store.undo("a")
    info = store.get("a")
    assert (info.repeats, info.weight, info.role) == (1, 1.0, "")
    for wrong in ({"repeats": 0}, {"weight": 11}, {"role": "king"}):
        with pytest.raises(DatasetError):
            store.set_training("a", wrong)


def test_tables_of_captions_come_in_with_a_folder_a_zip_and_loose_files(store: DatasetStore, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    (folder / "train").mkdir(parents=True)
    zoo.good(folder / "train" / "a.png", seed=1)
    zoo.good(folder / "train" / "b.png", seed=2)
    zoo.good(folder / "c.png", seed=3)
    (folder / "c.png.txt").write_text("of the file")
    rows = [
        {"file_name": "train/a.png", "text": "a hill"},
        {"file_name": "train/b.png", "captions": ["a lake", "water"]},
        {"file_name": "c.png", "text": "of the table"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    loose = [path for path in folder.rglob("*") if path.is_file()]
    for name, sources in (("folder", [folder]), ("zip", [archive]), ("loose", loose)):
        info, report = store.create_from(name, sources)
        found = {facts.name: facts.captions for facts in store.scan(info.name).pictures}
        assert found == {"a.png": ("a hill",), "b.png": ("a lake", "water"), "c.png": ("of the file",)}, name
        assert report.num_captions == 3


def test_history_goes_to_any_point_and_compares_with_runs(store: DatasetStore, data: DataFolder, kohya: Path) -> None:
    info, _ = store.create_from("a", [kohya / "img" / "5_kol cat"])
    config = {"data": {"dataset": "a", "concepts": [], "prior": {"dataset": ""}}}
    run = create_run(data, "train", "cats", config)
    write_versions(run.folder, [current_version(store, "a")])
    store.set_caption("a", "a.png", "a cat")
    store.set_caption("a", "a.png", "two cats")
    service = DatasetHistoryService(data)
    rows = service.changes(info.name)
    assert [(row.position, row.is_current, row.is_undone) for row in rows] == [
        (2, True, False),
        (1, False, False),
        (0, False, False),
    ]
    assert [str(one) for one in service.since_change("a", 1)] == ["a.png: its caption was 'a cat', is 'two cats'"]
    service.go_to("a", 0)
    assert store.caption_of("a", "a.png") == "its own"
    service.go_to("a", 1)
    assert store.caption_of("a", "a.png") == "a cat"
    assert [row.is_undone for row in service.changes("a")] == [True, False, False]
    assert service.runs("a") == [(f"cats · {run.id}", run.id)]
    version, found = service.since_run("a", run.id)
    assert (len(version.pictures), len(found)) == (1, 1)
    assert service.restore_run("a", run.id).has_changed
    assert service.since_run("a", run.id)[1] == []
