from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests import zoo
from trainer.dataset.scan import DatasetScan, preflight, scan_folder
from trainer.errors import DatasetError


def codes(scan: DatasetScan) -> dict[str, list[str]]:
    return {facts.name: [problem.code for problem in facts.problems] for facts in scan.pictures}


def test_one_of_each_kind_of_picture_is_judged_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    scan = scan_folder(zoo.everything(tmp_path / "我的 画"))
    found = codes(scan)
    errors = {"empty.jpg": "empty_file", "text.png": "not_a_picture", "page.jpg": "not_a_picture"}
    errors |= {"truncated.jpg": "broken", "half.png": "broken", "tiny.png": "too_small", "huge.png": "too_large"}
    for name, code in errors.items():
        assert found.pop(name) == [code]
    assert found.pop("animated.gif") == ["animated"]
    assert found.pop("transparent.png") == ["transparent"]
    assert found == {name: [] for name in found}
    assert {facts.name for facts in scan.usable} == {*found, "animated.gif", "transparent.png"}
    assert scan.num_captions == 3
    sizes = {facts.name: (facts.width, facts.height) for facts in scan.pictures}
    assert sizes["rotated.jpg"] == (64, 96)
    assert {finding.where for finding in scan.findings()} >= set(errors)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    scan = scan_folder(tmp_path)
    assert [problem.code for problem in scan.problems] == ["empty"]
    with pytest.raises(DatasetError, match="no pictures"):
        scan.require_usable()


def test_a_folder_of_broken_pictures_names_every_one(tmp_path: Path) -> None:
    zoo.empty_file(tmp_path / "a.jpg")
    zoo.text_as_picture(tmp_path / "b.png")
    with pytest.raises(DatasetError) as caught:
        scan_folder(tmp_path).require_usable()
    assert [finding.where for finding in caught.value.findings] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("name", ["nothing", "file.png"])
def test_a_folder_that_is_none_is_a_dataset_error(tmp_path: Path, name: str) -> None:
    zoo.good(tmp_path / "file.png")
    with pytest.raises(DatasetError, match=r"folder"):
        scan_folder(tmp_path / name)


def test_names_come_in_the_order_people_expect_and_from_folders_inside(tmp_path: Path) -> None:
    (tmp_path / "子 folder").mkdir()
    for name in ("10.png", "9.png", "b.png", "子 folder/1.png"):
        zoo.good(tmp_path / name, seed=hash(name) % 1000)
    assert [facts.name for facts in scan_folder(tmp_path).pictures] == ["9.png", "10.png", "b.png", "子 folder/1.png"]


def test_files_of_systems_and_programs_are_passed_over(tmp_path: Path) -> None:
    zoo.good(tmp_path / "a.png")
    for name in ("._a.png", ".hidden.png", "Thumbs.db", ".DS_Store", "notes.md"):
        zoo.text_as_picture(tmp_path / name)
    (tmp_path / "__MACOSX").mkdir()
    zoo.text_as_picture(tmp_path / "__MACOSX" / "b.png")
    scan = scan_folder(tmp_path)
    assert codes(scan) == {"a.png": []}
    assert scan.problems == ()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_inside_only(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    (inside / "sub").mkdir(parents=True)
    zoo.good(outside / "secret.png")
    zoo.good(inside / "sub" / "a.png", seed=1)
    (inside / "secret.png").symlink_to(outside / "secret.png")
    (inside / "all").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "nowhere.png").symlink_to(tmp_path / "nothing.png")
    scan = scan_folder(inside)
    assert codes(scan) == {"sub/a.png": []}
    assert sorted(problem.code for problem in scan.problems) == ["dangling", "outside", "outside"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    zoo.good(tmp_path / "a.png").chmod(0)
    assert codes(scan_folder(tmp_path)) == {"a.png": ["unreadable"]}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_with_the_name_of_a_picture_does_not_hang_the_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert codes(scan_folder(tmp_path)) == {"pipe.png": ["not_a_file"]}


def test_duplicates_and_caption_clashes_are_warned_of(tmp_path: Path) -> None:
    zoo.good(tmp_path / "a.png", "one caption")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    zoo.noise(seed=5).save(tmp_path / "a.jpg")
    scan = scan_folder(tmp_path)
    assert codes(scan) == {"a.jpg": ["caption_clash"], "a.png": ["caption_clash"], "b.png": ["duplicate"]}
    assert len(scan.usable) == 3
    assert "a.png" in scan.pictures[2].problems[0].message


def test_txt_comes_before_caption_files(tmp_path: Path) -> None:
    zoo.good(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("second")
    assert scan_folder(tmp_path).pictures[0].caption == "second"
    (tmp_path / "a.txt").write_text("first")
    assert scan_folder(tmp_path).pictures[0].caption == "first"


def test_a_second_scan_decodes_nothing_that_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache" / "index.json"
    first = scan_folder(zoo.everything(folder), cache=cache)
    decoded: list[str] = []
    from trainer.dataset import looking as module

    def spy(path: Path, read=module.read_picture, **options):
        decoded.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(module, "read_picture", spy)
    assert scan_folder(folder, cache=cache) == first
    assert decoded == []
    # Another picture of the same name, a new caption, a file gone: all three are seen.
    Image.new("RGB", (50, 70), "teal").save(folder / "good 1.png")
    (folder / "水墨 山水.txt").write_text("fog", encoding="utf-8")
    (folder / "cmyk.jpg").unlink()
    again = {facts.name: facts for facts in scan_folder(folder, cache=cache).pictures}
    assert decoded == ["good 1.png"]
    assert (again["good 1.png"].width, again["good 1.png"].height) == (50, 70)
    assert again["水墨 山水.png"].caption == "fog"
    assert "cmyk.jpg" not in again


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    zoo.good(tmp_path / "set.png")
    cache = tmp_path / "index.json"
    cache.write_text('{"version": 1, "files"')
    assert len(scan_folder(tmp_path, cache=cache).usable) == 1
    assert "set.png" in cache.read_text()


def test_progress_counts_to_the_end_and_can_stop_the_scan(tmp_path: Path) -> None:
    for index in range(5):
        zoo.good(tmp_path / f"{index}.png", seed=index)
    calls: list[tuple[int, int]] = []
    scan_folder(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(index, 5) for index in range(1, 6)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_folder(tmp_path, progress=stop)


def test_preflight_says_what_is_enlarged_and_what_is_cut(tmp_path: Path) -> None:
    zoo.good(tmp_path / "fits.png", size=(128, 128))
    zoo.good(tmp_path / "small.png", seed=1, size=(96, 64))
    zoo.good(tmp_path / "strip.png", seed=2, size=(600, 100))
    found = {finding.where: finding.message for finding in preflight(scan_folder(tmp_path).usable, 128, 2.0)}
    assert set(found) == {"small.png", "strip.png"}
    assert "enlarged" in found["small.png"]
    assert "cut off" in found["strip.png"]
