"""What the page is given of a browser's folders, and how an import is watched and cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.uploads import with_names
from tests import zoo
from trainer.dataset.bringing import bring_in
from trainer.dataset.store import DatasetStore
from trainer.errors import Cancelled
from trainer.files import is_inside
from trainer.paths import DataFolder
from trainer.progress import StageProgress


@pytest.mark.parametrize(
    "name",
    [
        "../../../up/a.png",
        "/etc/a.png",
        "..\\..\\up\\a.png",
        "C:\\Users\\me\\a.png",
        "画/é ü/a.png",
        "x" * 300 + "/" + "y" * 300 + ".png",
        "/".join("deep" for _ in range(200)) + "/a.png",
        "a\0b/c\n.png",
        "..",
    ],
)
def test_no_name_that_a_browser_gives_leads_out_of_the_data_set(
    store: DatasetStore, data: DataFolder, tmp_path: Path, name: str
) -> None:
    picture = zoo.good(tmp_path / "up.png", seed=1)
    before = sorted(tmp_path.rglob("*"))
    store.create_from("mine", with_names([str(picture)], [name]))
    info = store.get("mine")
    assert info.num_pictures == 1
    new = [path for path in tmp_path.rglob("*") if path not in before]
    assert all(is_inside(path, data.root) for path in new)
    assert [path.suffix for path in info.folder.iterdir() if path.suffix == ".png"] == [".png"]


def test_a_browsers_folder_comes_in_as_one_on_the_disk(store: DatasetStore, data: DataFolder, tmp_path: Path) -> None:
    files, names = [], []
    for index, folder in enumerate(("10_zib robot", "5_cat")):
        for suffix in (".png", ".txt"):
            # As the server stores uploads: each in a folder of its own, under its mere name.
            path = tmp_path / f"{index}{suffix[1:]}" / f"a{suffix}"
            path.parent.mkdir()
            zoo.good(path, seed=index) if suffix == ".png" else path.write_text(f"of {folder}", encoding="utf-8")
            files.append(str(path))
            names.append(f"train/{folder}/a{suffix}")
    brought = bring_in(store, data, "mine", with_names(files, names))
    found = {info.title: (info.repeats, store.scan(info.name).pictures[0].caption) for info in brought.sets}
    assert found == {"mine zib robot": (10, "of 10_zib robot"), "mine cat": (5, "of 5_cat")}


class _Stops:
    """Someone who stops what they watch at the first look at a stage."""

    def __init__(self, stage: str) -> None:
        self.stages: list[str] = []
        self._stage = stage

    def check_stop(self) -> None:
        if self.stages and self.stages[-1].startswith(self._stage):
            raise Cancelled("Stopped.")

    def stage(self, name: str, done: int, total: int, *_: object) -> None:
        assert 0 <= done <= total
        self.stages.append(name)


@pytest.mark.parametrize("stage", ["Copying pictures", "Writing to the disk"])
def test_an_import_that_is_cancelled_leaves_nothing(
    store: DatasetStore, data: DataFolder, tmp_path: Path, stage: str
) -> None:
    for folder in ("10_zib", "5_cat"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for seed in range(2):
            zoo.good(tmp_path / "train" / folder / f"{seed}.png", "its own", seed=seed + len(folder))
    store.create("there")
    with pytest.raises(Cancelled):
        store.add_files("there", [tmp_path / "train"], StageProgress(_Stops(stage)))
    assert store.get("there").num_pictures == 0
    with pytest.raises(Cancelled):
        bring_in(store, data, "mine", [tmp_path / "train"], progress=StageProgress(_Stops(stage)))
    assert [path.name for path in data.datasets.iterdir()] == ["there"]
    assert not data.trash.exists() or not list(data.trash.iterdir())
