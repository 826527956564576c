from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from app.services.datasets import DatasetService
from app.services.training import TrainingService
from tests import zoo
from trainer.dataset import archives
from trainer.dataset.bringing import bring_in
from trainer.dataset.dropped import Dropped
from trainer.dataset.importing import ImportReport
from trainer.dataset.record import CAPTIONS, CROPS, IGNORED, TURNS, load_state
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError, ResourceError
from trainer.paths import ASSETS, DataFolder

NAME = "我的 水墨 画"


def state(folder: Path) -> dict[str, str]:
    """All files of a folder with their hashes: equal before and after means nothing was touched."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".adding.lock")
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures 图"
    (folder / "sub").mkdir(parents=True)
    zoo.good(folder / "山 水.png", "mountains", seed=1)
    zoo.good(folder / "a.png", "a house", seed=2)
    zoo.good(folder / "sub" / "a.png", "another house", seed=3)
    return folder


# --- coming in ---------------------------------------------------------------------------------------------------


def zipped(pictures: Path) -> Path:
    return Path(shutil.make_archive(str(pictures.parent / "画 packed"), "zip", pictures))


@pytest.mark.parametrize("form", ["folder", "zip", "files"])
def test_pictures_come_in_with_their_captions_under_unused_names(
    store: DatasetStore, pictures: Path, form: str
) -> None:
    before = state(pictures)
    sources = {"folder": lambda: [pictures], "zip": lambda: [zipped(pictures)]}.get(
        form, lambda: [*pictures.glob("*.*"), pictures / "sub"]
    )()
    info, report = store.create_from(NAME, sources, trigger_word="zsy")
    assert sorted(report.added) == ["a 2.png", "a.png", "山 水.png"]
    assert (info.name, info.num_pictures, info.trigger_word, info.is_own) == (NAME, 3, "zsy", True)
    captions = sorted(str(facts.caption) for facts in store.scan(NAME).usable)
    assert captions == ["a house", "another house", "mountains"]
    assert state(pictures) == before


def test_dropping_the_same_again_adds_nothing_and_overwrites_nothing(store: DatasetStore, pictures: Path) -> None:
    info, _ = store.create_from(NAME, [pictures])
    before = state(info.folder)
    report = store.add_files(NAME, [pictures])
    assert report.added == ()
    assert all("already in the data set" in finding.message for finding in report.left_out)
    assert state(info.folder) == before


def test_another_picture_of_a_taken_name_gets_a_number(store: DatasetStore, tmp_path: Path, pictures: Path) -> None:
    info, _ = store.create_from(NAME, [pictures / "a.png"])
    first = state(info.folder)["a.png"]
    (tmp_path / "other").mkdir()
    zoo.noise(seed=50).save(tmp_path / "other" / "A.jpg")
    assert store.add_files(NAME, [tmp_path / "other" / "A.jpg"]).added == ("A 2.jpg",)
    assert state(info.folder)["a.png"] == first


def test_captions_dropped_later_go_to_their_pictures(store: DatasetStore, tmp_path: Path, pictures: Path) -> None:
    store.create_from(NAME, [pictures / "a.png"])
    (tmp_path / "a.txt").write_text("a blue house", encoding="utf-8")
    (tmp_path / "zzz.txt").write_text("nobody's", encoding="utf-8")
    report = store.add_files(NAME, [tmp_path / "a.txt", tmp_path / "zzz.txt"])
    assert store.scan(NAME).pictures[0].caption == "a blue house"
    assert [finding.where for finding in report.left_out] == ["zzz.txt"]


def captions_in(store: DatasetStore) -> dict[str, tuple[str, ...]]:
    return {facts.name: facts.captions for facts in store.scan(NAME).pictures}


def numbered(folder: Path, captions: dict[str, str]) -> None:
    """Two folders with a `1.png` each, and these captions."""
    for seed in (1, 2):
        (folder / f"up{seed}").mkdir()
        zoo.good(folder / f"up{seed}" / "1.png", seed=seed)
    for place, text in captions.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(text)


def test_loose_files_of_one_name_keep_the_captions_of_their_folders(store: DatasetStore, tmp_path: Path) -> None:
    numbered(tmp_path, {"up1/1.txt": "first", "up2/1.txt": "second"})
    loose = sorted(path for path in tmp_path.rglob("1.*") if path.is_file())
    _, report = store.create_from(NAME, loose)
    assert sorted(captions_in(store).values()) == [("first",), ("second",)]
    assert report.left_out == ()


@pytest.mark.parametrize("captions", [{"up3/1.txt": "first", "up4/1.txt": "second"}, {"up3/1.txt": "first"}])
def test_nobody_guesses_whose_a_loose_caption_is(store: DatasetStore, tmp_path: Path, captions: dict[str, str]) -> None:
    """As a browser sends two folders with a `1.png` each: every file in a place of its own."""
    numbered(tmp_path, captions)
    zoo.good(tmp_path / "up1" / "only.png", seed=3)
    (tmp_path / "up3" / "only.txt").write_text("its own")
    zoo.noise(seed=9).save(tmp_path / "up3" / "1-masklabel.png")
    loose = sorted(path for path in tmp_path.glob("up*/*.*") if path.is_file())
    _, report = store.create_from(NAME, loose)
    assert captions_in(store) == {"1.png": (), "1 2.png": (), "only.png": ("its own",)}
    assert report.num_masks == 0
    assert sorted(finding.where for finding in report.left_out) == ["1-masklabel.png", *["1.txt"] * len(captions)]
    assert all("cannot be told" in finding.message for finding in report.left_out)


def test_files_with_the_names_that_a_browser_knows_come_in_as_their_folder(store: DatasetStore, tmp_path: Path) -> None:
    numbered(tmp_path, {"up3/1.txt": "first", "up4/1.txt": "second", "up5/metadata.csv": "1.png,third\n"})
    zoo.good(tmp_path / "up5" / "1.png", seed=3)
    zoo.noise(seed=9).save(tmp_path / "up3" / "m.png")
    sources = [
        Dropped(tmp_path / "up1" / "1.png", "pics/a/1.png"),
        Dropped(tmp_path / "up2" / "1.png", "pics\\b\\1.png"),
        Dropped(tmp_path / "up5" / "1.png", "/pics/../c/1.png"),
        Dropped(tmp_path / "up3" / "1.txt", "pics/a/1.txt"),
        Dropped(tmp_path / "up4" / "1.txt", "pics/b/1.txt"),
        Dropped(tmp_path / "up5" / "metadata.csv", "pics/c/metadata.csv"),
        Dropped(tmp_path / "up3" / "m.png", "pics/a/masks/1.png"),
    ]
    before = state(tmp_path)
    _, report = store.create_from(NAME, sources)
    assert sorted(captions_in(store).values()) == [("first",), ("second",), ("third",)]
    assert (report.num_masks, report.left_out) == (1, ())
    assert {name: value for name, value in state(tmp_path).items() if name.startswith("up")} == {
        name: value for name, value in before.items() if name.startswith("up")
    }


def test_a_picture_that_was_left_out_comes_back_when_it_is_given_again(
    store: DatasetStore, tmp_path: Path, pictures: Path
) -> None:
    store.create_from(NAME, [pictures / "a.png"])
    zoo.good(tmp_path / "b.png", seed=30)
    store.add_files(NAME, [tmp_path / "b.png"])
    store.undo(NAME)
    report = store.add_files(NAME, [tmp_path / "b.png"])
    assert report.summary() == "0 pictures added, 1 brought back."
    assert sorted(captions_in(store)) == ["a.png", "b.png"]
    assert [change.title for change in store.history(NAME)[0]] == ["Added 1 pictures"]
    store.undo(NAME)
    assert sorted(captions_in(store)) == ["a.png"]


def test_a_newer_caption_comes_in_with_a_picture_that_is_there(store: DatasetStore, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    zoo.good(folder / "a.png", seed=1)
    store.create_from(NAME, [folder])
    (folder / "a.txt").write_text("a hill\nhills")
    report = store.add_files(NAME, [folder / "a.png", folder / "a.txt"])
    assert captions_in(store) == {"a.png": ("a hill", "hills")}
    assert "1 caption" in report.summary()
    (folder / "a.txt").write_text("a lake")
    store.add_files(NAME, [folder])
    assert captions_in(store) == {"a.png": ("a lake",)}
    store.undo(NAME)
    assert captions_in(store) == {"a.png": ("a hill", "hills")}


def test_the_caption_that_came_in_before_does_not_undo_what_was_written_since(
    store: DatasetStore, pictures: Path
) -> None:
    store.create_from(NAME, [pictures])
    store.set_caption(NAME, "a.png", "written by hand")
    store.add_files(NAME, [pictures])
    assert captions_in(store)["a.png"] == ("written by hand",)


def test_the_same_picture_twice_in_a_drop_keeps_the_caption_that_one_of_them_has(
    store: DatasetStore, tmp_path: Path
) -> None:
    zoo.good(tmp_path / "a.png", seed=1)
    zoo.good(tmp_path / "b.png", "a hill", seed=1)
    store.create_from(NAME, [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "b.txt"])
    assert captions_in(store) == {"a.png": ("a hill",)}


def test_several_captions_dropped_later_stay_several(store: DatasetStore, tmp_path: Path, pictures: Path) -> None:
    store.create_from(NAME, [pictures / "a.png"])
    (tmp_path / "a.txt").write_text("one\ntwo")
    store.add_files(NAME, [tmp_path / "a.txt"])
    assert captions_in(store) == {"a.png": ("one", "two")}


def test_broken_pictures_come_in_and_are_said(store: DatasetStore, tmp_path: Path) -> None:
    info, report = store.create_from(NAME, [zoo.everything(tmp_path / "zoo")])
    assert len(report.added) == 15
    scan = store.scan(NAME)
    assert len(scan.usable) == 8
    assert all(info.folder in facts.path.parents for facts in scan.pictures)


def test_nothing_but_text_is_refused_and_leaves_nothing(store: DatasetStore, data: DataFolder, tmp_path: Path) -> None:
    notes = zoo.text_as_picture(tmp_path / "notes.md")
    with pytest.raises(DatasetError, match="no picture in what you dropped") as caught:
        store.create_from(NAME, [notes])
    assert caught.value.findings[0].where == "notes.md"
    assert list(data.datasets.iterdir()) == []
    with pytest.raises(DatasetError, match="not there"):
        store.create_from(NAME, [tmp_path / "gone.png"])


def evil_zip(name: str) -> Callable[[Path], Path]:
    return lambda path: zoo.zip_of(path, {"good.png": zoo.png_bytes(), name: zoo.png_bytes(1)})


def damaged_zip(method: int) -> Callable[[Path], Path]:
    """A zip whose list is whole, packed by this method, with nonsense in the content of its entry."""

    def make(path: Path) -> Path:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.png", zoo.png_bytes())
        data = bytearray(path.read_bytes())
        data[60:160] = bytes(range(100, 200))
        path.write_bytes(bytes(data))
        return path

    return make


def zip_with_broken_name(path: Path) -> Path:
    """The flag says that the name is UTF-8, and it is not."""
    zoo.zip_of(path, {"é.png": zoo.png_bytes()})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9\xe9"))
    return path


def zip_of_the_future(path: Path) -> Path:
    """The list asks for a version of the format that there is not."""
    data = bytearray(zoo.zip_of(path, {"a.png": zoo.png_bytes()}).read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damaged_zip(zipfile.ZIP_BZIP2), "incomplete or damaged"),
        (damaged_zip(zipfile.ZIP_LZMA), "incomplete or damaged"),
        (zip_with_broken_name, "incomplete or damaged"),
        (zip_of_the_future, "cannot be unpacked"),
        (evil_zip("../evil.png"), "not safe to unpack"),
        (evil_zip("a/../../evil.png"), "not safe to unpack"),
        (evil_zip("/evil.png"), "not safe to unpack"),
        (evil_zip("..\\evil.png"), "not safe to unpack"),
        (evil_zip("C:\\evil.png"), "not safe to unpack"),
        (evil_zip("\\\\host\\share\\evil.png"), "not safe to unpack"),
        (zoo.zip_with_link, "not safe to unpack"),
        (zoo.zip_bomb, "would take 0.[12] GB"),
        (zoo.zip_encrypted, "encrypted"),
        (zoo.zip_truncated, "incomplete or damaged"),
        (zoo.zip_damaged, "incomplete or damaged"),
        (zoo.text_as_picture, "incomplete or damaged"),
        (lambda path: shutil.copy(shutil.make_archive(str(path.with_suffix("")), "gztar", path.parent), path), "gzip"),
        (lambda path: zoo.zip_of(path, {"readme.md": b"hello"}), "no picture"),
    ],
)
def test_a_bad_zip_is_refused_whole_and_nothing_is_lost(
    store: DatasetStore, data: DataFolder, tmp_path: Path, pictures: Path, make: Callable[[Path], Path], words: str
) -> None:
    store.create_from(NAME, [pictures])
    store.set_caption(NAME, "a.png", "written by hand")
    (tmp_path / "drop").mkdir()
    archive = make(tmp_path / "drop" / "bad 包.zip")
    before, outside = state(data.datasets), state(tmp_path / "drop")
    with pytest.raises(DatasetError, match=words):
        bring_in(store, data, "another", [archive])
    with pytest.raises(DatasetError, match=words) as caught:
        store.add_files(NAME, [pictures / "a.png", Path(archive)])
    assert caught.value.fix
    assert state(data.datasets) == before
    assert state(tmp_path / "drop") == outside
    assert not list(tmp_path.rglob("evil.png"))
    assert not list(data.datasets.glob(".partial-*"))


def test_a_zip_of_too_many_entries_is_refused(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    path = zoo.zip_of(tmp_path / "a.zip", {f"{index}.png": zoo.png_bytes(index) for index in range(4)})
    with pytest.raises(DatasetError, match="more than 3 entries"):
        store.create_from(NAME, [path])


def test_a_zip_in_a_zip_and_system_files_are_left_out_with_a_word(store: DatasetStore, tmp_path: Path) -> None:
    files = {"set/a.png": zoo.png_bytes(), "set/more.zip": b"PK", "__MACOSX/set/._a.png": b"x", "set/x.psd1": b"x"}
    _, report = store.create_from(NAME, [zoo.zip_of(tmp_path / "a.zip", files)])
    assert report.added == ("a.png",)
    assert {finding.where: finding.message for finding in report.left_out} == {
        "set/more.zip": "is an archive inside the zip and was not opened",
        "": "1 other file in the zip left out",
    }


def test_names_of_chinese_windows_and_of_backslashes_are_read_right(store: DatasetStore, tmp_path: Path) -> None:
    _, report = store.create_from(NAME, [zoo.zip_with_chinese_windows_names(tmp_path / "a.zip")])
    assert report.added == ("水墨 山水.png",)
    path = zoo.zip_of(tmp_path / "b.zip", {"x.png": zoo.png_bytes(8), "d\\y.png": zoo.png_bytes(9), "d\\y.txt": b"why"})
    assert sorted(store.add_files(NAME, [path]).added) == ["x.png", "y.png"]
    assert {facts.name: facts.caption for facts in store.scan(NAME).pictures}["y.png"] == "why"


def test_names_that_some_system_refuses_are_changed(store: DatasetStore, tmp_path: Path) -> None:
    names = ["CON.png", 'a"; rm -rf ~.png', "-x.png", "<img onerror=1>.png", "é" * 120 + ".png"]
    path = zoo.zip_of(tmp_path / "a.zip", {name: zoo.png_bytes(index) for index, name in enumerate(names)})
    _, report = store.create_from(NAME, [path])
    assert len(report.added) == 5
    for name in report.added:
        assert name.endswith(".png")
        assert len(name.encode()) <= 110
        assert not set(name) & set('<>:"/\\|?*')
        assert not name.startswith(("-", "CON."))


def test_a_full_disk_takes_nothing_and_loses_nothing(
    store: DatasetStore, data: DataFolder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_from(NAME, [pictures / "a.png"])
    before = state(data.datasets)
    copies = 0

    def fill(source: Path, target: Path) -> None:
        nonlocal copies
        copies += 1
        Path(target).write_bytes(b"part")
        if copies == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.dataset.importing.shutil.copyfile", fill)
    with pytest.raises(ResourceError, match="disk is full"):
        store.add_files(NAME, [pictures])
    assert copies == 2
    assert state(data.datasets) == before
    assert not list(data.datasets.glob(".partial-*"))


def test_too_little_space_is_said_before_anything_is_copied(
    store: DatasetStore, data: DataFolder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.files.free_bytes", lambda folder: 10)
    with pytest.raises(ResourceError, match="Not enough free disk space"):
        store.create_from(NAME, [pictures])
    assert list(data.datasets.iterdir()) == []


def test_what_a_killed_import_left_is_swept_and_never_listed(store: DatasetStore, data: DataFolder) -> None:
    names = [info.name for info in store.list()]
    old, young = data.datasets / ".partial-import-old", data.datasets / ".partial-import-young"
    for partial in (old, young):
        partial.mkdir(parents=True)
        zoo.good(partial / "a.png")
    os.utime(old, (0, 0))
    assert [info.name for info in store.list()] == names
    assert store.sweep() == [old]
    assert young.exists()


def test_a_caption_is_edited_and_undone_while_pictures_come_in(
    store: DatasetStore, pictures: Path, tmp_path: Path
) -> None:
    store.create_from(NAME, [pictures / "a.png"])
    more = tmp_path / "more"
    more.mkdir()
    for index in range(3):
        zoo.good(more / f"{index}.png", None, seed=10 + index)

    def edit(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("Copying pictures", 1):
            store.set_caption(NAME, "a.png", "first")
        elif (stage, done) == ("Copying pictures", 2):
            store.set_caption(NAME, "a.png", "second")
            store.undo(NAME)
            with pytest.raises(DatasetError, match="being added"):
                store.discard_left_out(NAME)

    assert len(store.add_files(NAME, [more], edit).added) == 3
    assert store.caption_of(NAME, "a.png") == "first"
    assert [change.title for change in store.history(NAME)[0]][-1] == "Added 3 pictures"
    store.undo(NAME)
    assert store.caption_of(NAME, "a.png") == "first"
    assert store.scan(NAME).num_captions == 1
    assert len(store.scan(NAME).usable) == 1


def test_pictures_that_come_in_at_once_wait_for_each_other(store: DatasetStore, pictures: Path, tmp_path: Path) -> None:
    store.create(NAME)
    other = zoo.good(tmp_path / "other.png", None, seed=10)
    waited: list[str] = []
    with ThreadPoolExecutor() as pool:
        seconds: list[Future[ImportReport]] = []

        def begin_another(stage: str, done: int, total: int) -> None:
            if not seconds:
                wait = lambda stage, done, total: waited.append(stage)  # noqa: E731
                seconds.append(pool.submit(store.add_files, NAME, [other], wait))
                while not waited:
                    time.sleep(0.01)

        assert len(store.add_files(NAME, [pictures], begin_another).added) == 3
        assert seconds[0].result(timeout=30).added == ("other.png",)
    assert waited[0] == "Waiting: other pictures are being added to this data set"
    assert len(store.scan(NAME).usable) == 4


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "   ", "..", "/", "///"])
def test_a_name_of_nothing_is_refused(store: DatasetStore, name: str) -> None:
    with pytest.raises(DatasetError, match="needs a name"):
        store.create(name)


def test_a_name_cannot_lead_out_and_is_taken_once(store: DatasetStore, data: DataFolder) -> None:
    info = store.create("../../evil")
    assert info.folder.parent == data.datasets
    store.create(NAME)
    for taken in (NAME, "ink-wash"):
        with pytest.raises(DatasetError, match="already a data set"):
            store.create(taken)


def test_a_name_that_is_taken_is_told_as_the_list_has_it(store: DatasetStore) -> None:
    store.create("Ink: first")
    with pytest.raises(DatasetError, match="already a data set 'Ink: first'"):
        store.create("Ink? first")


@pytest.mark.parametrize("name", ["../data", "..", "no such set", "", "\0", "x" * 5000])
def test_changes_go_to_known_sets_only(store: DatasetStore, name: str) -> None:
    for change in (
        lambda: store.delete(name),
        lambda: store.set_caption(name, "a.png", "x"),
        lambda: store.set_trigger_word(name, "x"),
        lambda: store.add_files(name, ["x.png"]),
        lambda: store.remove_pictures(name, ["a.png"]),
    ):
        with pytest.raises(DatasetError, match="no data set"):
            change()


@pytest.mark.parametrize("picture", ["../../other/a.png", "/etc/passwd", "", "gone.png", "dataset.json", "."])
def test_pictures_are_those_of_the_set_only(
    store: DatasetStore, data: DataFolder, pictures: Path, picture: str
) -> None:
    store.create_from(NAME, [pictures])
    (data.root / "other").mkdir()
    zoo.good(data.root / "other" / "a.png")
    before = state(data.root)
    for change in (lambda: store.remove_pictures(NAME, [picture]), lambda: store.set_caption(NAME, picture, "x")):
        with pytest.raises(DatasetError, match="not in the data set"):
            change()
    assert state(data.root) == before


# --- captions and trigger words ----------------------------------------------------------------------------------


def test_captions_written_here_come_before_files_and_can_be_taken_away(store: DatasetStore, pictures: Path) -> None:
    info, _ = store.create_from(NAME, [pictures])
    files = state(info.folder)
    assert store.set_caption(NAME, "a.png", " a tower\nby the sea ") == "a tower by the sea"
    assert {facts.name: facts.caption for facts in store.scan(NAME).pictures}["a.png"] == "a tower by the sea"
    store.set_caption(NAME, "a.png", "")
    assert {facts.name: facts.caption for facts in store.scan(NAME).pictures}["a.png"] is None
    assert store.caption_of(NAME, "a.png") == ""
    assert store.caption_of(NAME, "山 水.png") == "mountains"
    assert {name: digest for name, digest in state(info.folder).items() if name in files} == files


def test_captions_of_two_tabs_at_once_all_stay(store: DatasetStore, data: DataFolder, tmp_path: Path) -> None:
    for index in range(12):
        zoo.good(tmp_path / f"{index}.png", seed=index)
    store.create_from(NAME, sorted(tmp_path.glob("*.png")))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: DatasetStore(data).set_caption(NAME, f"{index}.png", f"c{index}"), range(12)))
    assert {facts.name: facts.caption for facts in store.scan(NAME).pictures} == {
        f"{index}.png": f"c{index}" for index in range(12)
    }


def test_a_damaged_record_is_said_and_not_replaced(store: DatasetStore, data: DataFolder, pictures: Path) -> None:
    store.create_from(NAME, [pictures])
    record = data.datasets / NAME / "captions.json"
    record.write_text('{"a.png": "half a cap')
    for action in (lambda: store.scan(NAME), lambda: store.set_caption(NAME, "a.png", "x")):
        with pytest.raises(DatasetError, match="damaged"):
            action()
    assert record.read_text() == '{"a.png": "half a cap'


@pytest.mark.parametrize("name", [NAME, "ink-wash"])
def test_a_damaged_record_leaves_the_other_data_sets_as_they_are(
    store: DatasetStore, data: DataFolder, pictures: Path, name: str
) -> None:
    store.create_from("good", [pictures])
    record = data.datasets / name / "dataset.json"
    record.parent.mkdir()
    record.write_text("{")
    infos = store.list()
    assert (infos[0].name, infos[-1].name) == ("good", name)
    assert [info.name for info in infos if info.problem] == [name]
    assert (name, " · damaged") in [(key, label[-10:]) for label, key in DatasetService(data).choices()]
    assert TrainingService(data).first_values()["data.dataset"] == "good"
    assert len(store.scan("good").usable) == 3
    for action in (
        lambda: store.get(name),
        lambda: store.scan(name),
        lambda: store.get(data.datasets / NAME if name == NAME else ASSETS / "datasets" / name),
        lambda: store.add_files(name, [pictures]),
        lambda: store.set_caption(name, "a.png", "x"),
    ):
        with pytest.raises(DatasetError, match="damaged"):
            action()
    assert [path.name for path in record.parent.iterdir()] == ["dataset.json"]
    assert record.read_text() == "{"
    if name == NAME:
        assert store.delete(name).joinpath("dataset.json").read_text() == "{"


def test_trigger_words(store: DatasetStore) -> None:
    store.create(NAME)
    assert store.set_trigger_word(NAME, "  zsy   style\n") == "zsy style"
    assert store.get(NAME).trigger_word == "zsy style"
    store.set_trigger_word(NAME, "")
    assert store.get(NAME).trigger_word == ""
    with pytest.raises(DatasetError, match="longer than 200"):
        store.set_trigger_word(NAME, "x" * 201)


# --- linked and bundled ------------------------------------------------------------------------------------------


def test_a_linked_folder_is_never_touched(store: DatasetStore, data: DataFolder, pictures: Path) -> None:
    before = state(pictures)
    info = store.link(f'  "{pictures}" ')
    assert (info.is_linked, info.folder, info.num_pictures) == (True, pictures, 3)
    store.set_caption(info.name, "a.png", "mine")
    store.set_trigger_word(info.name, "zsy")
    store.remove_pictures(info.name, ["sub/a.png"])
    assert {facts.name: facts.caption for facts in store.scan(info.name).pictures} == {
        "a.png": "mine",
        "山 水.png": "mountains",
    }
    assert store.get(pictures) == store.get(info.name) == store.link(pictures)
    assert store.get(info.name).num_pictures == 2
    store.restore_pictures(info.name)
    assert len(store.scan(info.name).pictures) == 3
    with pytest.raises(DatasetError, match="only be added"):
        store.add_files(info.name, [pictures / "a.png"])
    store.delete(info.name)
    assert info.name not in [known.name for known in store.list()]
    assert state(pictures) == before


def test_folders_that_cannot_be_linked_say_why(store: DatasetStore, data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    own = store.create(NAME)
    for path, words in (
        (tmp_path / "empty", "no pictures"),
        (tmp_path / "nothing", "does not exist"),
        ("", "No folder"),
        (own.folder, "belongs to Inkwash"),
    ):
        with pytest.raises(DatasetError, match=words):
            store.link(path)


def test_a_linked_folder_that_is_gone_is_said_and_can_be_deleted(store: DatasetStore, pictures: Path) -> None:
    info = store.link(pictures)
    shutil.rmtree(pictures)
    assert store.get(info.name).is_missing
    with pytest.raises(DatasetError, match="not there"):
        store.scan(info.name)
    store.delete(info.name)
    assert info.name not in [known.name for known in store.list()]


def test_bundled_sets_come_after_ones_own_and_ink_wash_is_the_first(
    store: DatasetStore, data: DataFolder, pictures: Path
) -> None:
    bundled = ["ink-wash", "blueprint", "zib-robot"]
    assert [info.name for info in store.list()] == bundled
    assert TrainingService(data).first_values()["data.dataset"] == "ink-wash"
    store.create_from("Zebras", [pictures])
    assert [info.name for info in store.list()] == ["Zebras", *bundled]


def test_bundled_sets_keep_their_files_and_take_changes_in_the_record(store: DatasetStore) -> None:
    before = state(ASSETS / "datasets")
    bundled = [info for info in store.list() if info.is_bundled]
    assert bundled
    for info in bundled:
        scan = store.scan(info.name)
        assert len(scan.usable) == info.num_pictures == scan.num_captions
        assert scan.findings() == []
        assert info.license
    info = bundled[0]
    first, second = (facts.name for facts in store.scan(info.name).pictures[:2])
    store.set_caption(info.name, first, "changed")
    store.set_trigger_word(info.name, "other words")
    store.remove_pictures(info.name, [second])
    scan = store.scan(info.name)
    assert scan.pictures[0].caption == "changed"
    assert second not in [facts.name for facts in scan.pictures]
    assert store.get(info.name).trigger_word == "other words"
    assert [known.name for known in store.list()] == [known.name for known in bundled]
    with pytest.raises(DatasetError, match="cannot be deleted"):
        store.delete(info.name)
    assert state(ASSETS / "datasets") == before


def test_a_plain_folder_is_scanned_without_a_record(store: DatasetStore, pictures: Path) -> None:
    info = store.get(str(pictures))
    assert (info.record, info.num_pictures) == (None, 3)
    assert len(store.scan(pictures).usable) == 3
    with pytest.raises(DatasetError, match="no data set and no folder"):
        store.get("nothing here")


# --- taking away -------------------------------------------------------------------------------------------------


def test_what_is_removed_or_deleted_lies_in_the_trash_whole(
    store: DatasetStore, data: DataFolder, pictures: Path
) -> None:
    info, _ = store.create_from(NAME, [pictures])
    store.set_caption(NAME, "山 水.png", "by hand")
    files = state(info.folder)
    store.remove_pictures(NAME, ["山 水.png"])
    assert {path: digest for path, digest in state(info.folder).items() if path in files and path.endswith("g")} == {
        path: digest for path, digest in files.items() if path.endswith("g")
    }
    assert [facts.name for facts in store.scan(NAME).pictures] == ["a 2.png", "a.png"]
    (trashed,) = store.discard_left_out(NAME)
    assert trashed.is_relative_to(data.trash)
    assert trashed.with_suffix(".txt").read_text(encoding="utf-8") == "by hand"
    assert [facts.name for facts in store.scan(NAME).pictures] == ["a 2.png", "a.png"]
    left = state(info.folder)
    target = store.delete(NAME)
    assert state(target) == left
    assert not info.folder.exists()
    # The name is free again, and a second deletion does not overwrite the first.
    store.create(NAME)
    assert store.delete(NAME) != target


def test_the_trash_keeps_the_caption_of_the_file_and_those_of_pictures_of_the_same_stem(
    store: DatasetStore, data: DataFolder, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    store.create_from(NAME, [zoo.good(tmp_path / "in" / "cat.png", "of the file", seed=1).parent])
    store.set_caption(NAME, "cat.png", "by hand")
    store.remove_pictures(NAME, ["cat.png"])
    store.discard_left_out(NAME)
    zoo.good(tmp_path / "cat.jpg", "of another", seed=2)
    store.add_files(NAME, [tmp_path / "cat.jpg", tmp_path / "cat.txt"])
    store.remove_pictures(NAME, ["cat.jpg"])
    store.discard_left_out(NAME)
    (bin_folder,) = data.trash.iterdir()
    assert {path.name: path.read_text() for path in bin_folder.glob("*.txt")} == {
        "cat.txt": "by hand",
        "cat (file).txt": "of the file",
        "cat 2.txt": "of another",
    }
    assert {path.name for path in bin_folder.glob("*g")} == {"cat.png", "cat 2.jpg"}


def test_a_new_picture_takes_nothing_over_from_a_gone_one_of_its_name(store: DatasetStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    zoo.good(tmp_path / "in" / "cat.png", "a cat", seed=1)
    store.create_from(NAME, [tmp_path / "in"])
    edits = {
        (CAPTIONS, "cat.png"): "a black cat",
        (CROPS, "cat.png"): [0, 0, 40, 40],
        (TURNS, "cat.png"): 90,
        (IGNORED, "duplicates|cat.png|dog.png"): True,
        (IGNORED, "duplicates|dog.png|fox.png"): True,
    }
    store.change(NAME, "Edits", edits)
    store.remove_pictures(NAME, ["cat.png"])
    store.discard_left_out(NAME)
    zoo.good(tmp_path / "in" / "cat.png", "a white horse", seed=2)
    assert store.add_files(NAME, [tmp_path / "in"]).added == ("cat.png",)
    (facts,) = store.scan(NAME).usable
    assert (facts.caption, facts.crop, facts.turn) == ("a white horse", None, 0)
    state = load_state(tmp_path / "data" / "datasets" / NAME)
    assert list(state[IGNORED]) == ["duplicates|dog.png|fox.png"]
    assert not state[CAPTIONS]
    store.undo(NAME)
    assert store.scan(NAME).usable == ()
    store.redo(NAME)
    assert [facts.caption for facts in store.scan(NAME).usable] == ["a white horse"]


def test_thumbnails_are_small_upright_and_kept_by_content(
    store: DatasetStore, data: DataFolder, tmp_path: Path
) -> None:
    path = zoo.rotated(tmp_path / "a.jpg", 6)
    thumbnail = store.thumbnail(path, size=48)
    with Image.open(thumbnail) as image:
        assert (image.format, image.size) == ("JPEG", (32, 48))
    assert thumbnail.is_relative_to(data.cache)
    shutil.copy(path, tmp_path / "b.jpg")
    assert store.thumbnail(tmp_path / "b.jpg", size=48) == thumbnail
    with pytest.raises(DatasetError):
        store.thumbnail(zoo.text_as_picture(tmp_path / "c.jpg"))


def test_zip_entries_are_bounded_by_what_their_list_says(tmp_path: Path) -> None:
    """A list that lies about sizes gives no more bytes than it says, and is refused."""
    path = zoo.zip_of(tmp_path / "a.zip", {"a.png": zoo.png_bytes(size=(300, 300))})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        size = archive.infolist()[0].file_size
    data = bytearray(bytes(data).replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    path.write_bytes(bytes(data))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="incomplete or damaged"):
        archives.unpack_zip(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.png")) <= 1000


# --- history -----------------------------------------------------------------------------------------------------


def _shown(store: DatasetStore, name: str) -> tuple[str, dict[str, str | None]]:
    return store.get(name).trigger_word, {facts.name: facts.caption for facts in store.scan(name).pictures}


@pytest.mark.parametrize("is_linked", [True, False])
def test_everything_can_be_undone_and_done_again_in_another_process(
    store: DatasetStore, data: DataFolder, pictures: Path, tmp_path: Path, is_linked: bool
) -> None:
    name = store.link(pictures).name if is_linked else store.create_from(NAME, [pictures])[0].name
    first = store.scan(name).pictures[0].name
    states = [_shown(store, name)]
    more = zoo.good(tmp_path / "more.png", seed=77)
    changes: list[Callable[[], object]] = [
        lambda: store.set_caption(name, first, "a red boat"),
        lambda: store.set_captions(
            name, {facts.name: "all alike" for facts in store.scan(name).pictures}, "Made alike"
        ),
        lambda: store.remove_pictures(name, [first]),
        lambda: store.set_trigger_word(name, "zsy"),
        lambda: store.restore_pictures(name),
    ]
    if not is_linked:
        changes.append(lambda: store.add_files(name, [more]))
    for change in changes:
        change()
        states.append(_shown(store, name))
    assert len(set(map(str, states))) == len(states)
    for expected in reversed(states[:-1]):
        assert DatasetStore(data).undo(name) is not None
        assert _shown(store, name) == expected
    assert store.undo(name) is None
    for expected in states[1:]:
        assert DatasetStore(data).redo(name) is not None
        assert _shown(store, name) == expected
    assert store.redo(name) is None


def test_a_new_change_takes_the_place_of_what_was_undone(store: DatasetStore) -> None:
    name = store.list()[0].name
    picture = store.scan(name).pictures[0].name
    for caption in ("one", "two", "three"):
        store.set_caption(name, picture, caption)
    store.undo(name)
    store.undo(name)
    store.set_caption(name, picture, "other")
    changes, position = store.history(name)
    assert ([change.patches[0].after for change in changes], position) == (["one", "other"], 2)
    assert not store.change(name, "Nothing", {("captions", picture): "other"})
    assert store.redo(name) is None


def test_an_earlier_state_is_shown_as_a_difference_and_brought_back(store: DatasetStore) -> None:
    name = store.list()[0].name
    first, second = (facts.name for facts in store.scan(name).pictures[:2])
    before = _shown(store, name)
    store.set_caption(name, first, "one")
    store.remove_pictures(name, [second])
    patches = store.changes_since(name, 0)
    assert {(patch.document, patch.key, patch.after) for patch in patches} == {
        ("captions", first, "one"),
        ("excluded", second, True),
    }
    assert store.go_back(name, 0)
    assert _shown(store, name) == before
    assert store.undo(name) is not None
    assert store.scan(name).pictures[0].caption == "one"
    with pytest.raises(DatasetError, match="no such earlier state"):
        store.go_back(name, 99)


def test_a_history_cut_off_in_its_last_line_goes_on(store: DatasetStore, data: DataFolder) -> None:
    name = store.list()[0].name
    picture = store.scan(name).pictures[0].name
    store.set_caption(name, picture, "one")
    lines = data.datasets / name / "history.jsonl"
    lines.write_bytes(lines.read_bytes() + b'{"title": "Cap')
    assert [change.title for change in store.history(name)[0]] == [f"Caption of {picture}"]
    store.set_caption(name, picture, "two")
    assert [change.patches[0].after for change in store.history(name)[0]] == ["one", "two"]
    store.undo(name)
    assert store.caption_of(name, picture) == "one"
