"""Turns of single pictures: what the record, crops, masks, thumbnails and the check make of them. What the trainer feeds is in test_dataset_cuts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.services.captions import CaptionQuery, CaptionService
from trainer.cli.main import main
from trainer.dataset.doctor.diagnosis import check_dataset, fix, of_check
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.preparing import set_backgrounds, set_crops, set_mask, turn_pictures
from trainer.dataset.record import TURNS, load_record, load_state
from trainer.dataset.restoring import restore_as_new
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.turns import back, turned, turned_box, turned_size
from trainer.dataset.versions import current_version, differences
from trainer.errors import DatasetError
from trainer.paths import DataFolder


def facts_of(linked: DatasetStore, name: str, dataset: str = "pictures") -> PictureFacts:
    return next(facts for facts in linked.scan(dataset).pictures if facts.name == name)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_box_turns_with_its_pixels_and_back(turn: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80), dtype=np.uint8))
    box = (7, 4, 61, 33)
    whole = turned(image, turn)
    assert whole.size == turned_size(image.size, turn)
    assert np.array_equal(np.asarray(whole), np.rot90(np.asarray(image), -turn // 90))
    there = turned_box(box, image.size, turn)
    assert np.array_equal(np.asarray(whole.crop(tuple(map(int, there)))), np.asarray(turned(image.crop(box), turn)))
    assert turned_box(there, whole.size, back(turn)) == box


def test_a_turn_is_one_change_that_takes_crop_and_mask_along_and_no_file_is_touched(linked: DatasetStore) -> None:
    set_crops(linked, "pictures", {"wide.png": (20, 10, 180, 100)})
    before = facts_of(linked, "wide.png")
    file, pixels = before.path.read_bytes(), np.asarray(before.open())
    assert turn_pictures(linked, "pictures", ["wide.png", "turned.jpg"], 90)
    now = facts_of(linked, "wide.png")
    # (x, y) of 200×100 px lies at (100 - y, x) of 100×200.
    assert (now.width, now.height, now.whole_size, now.turn) == (90, 160, (100, 200), 90)
    assert now.crop is not None
    assert now.crop.box == (0, 20, 90, 180)
    assert np.array_equal(np.asarray(now.open()), np.rot90(pixels, -1))
    assert now.mask is not None
    assert (now.mask.width, now.mask.height) == (50, 100)
    assert facts_of(linked, "turned.jpg").whole_size == (160, 80)  # what its camera said is turned on
    assert now.content != before.content
    assert now.path.read_bytes() == file
    with Image.open(linked.thumbnail(now.uncut)) as small:
        assert small.size == (100, 200)
    changes, _ = linked.history("pictures")
    assert changes[-1].title == "Turned 2 pictures by 90° clockwise"
    linked.undo("pictures")
    assert facts_of(linked, "wide.png") == before
    linked.redo("pictures")
    # Turned once more, it is upside down; three quarters more bring it back, and nothing stays in the record.
    turn_pictures(linked, "pictures", ["wide.png", "turned.jpg"], 90)
    assert facts_of(linked, "wide.png").turn == 180
    turn_pictures(linked, "pictures", ["wide.png"], -180)
    turn_pictures(linked, "pictures", ["turned.jpg"], None)
    record = linked.get("pictures").record
    assert record is not None
    assert load_state(record)[TURNS] == {} == load_record(record).turns
    assert facts_of(linked, "wide.png") == before


def test_what_is_drawn_on_a_turned_picture_lies_where_it_was_drawn(linked: DatasetStore) -> None:
    turn_pictures(linked, "pictures", ["wide.png", "odd.jpg"], 270)
    set_crops(linked, "pictures", {"wide.png": (0, 0, 100, 64)})
    assert facts_of(linked, "wide.png").whole_size == (100, 200)
    crop = facts_of(linked, "wide.png").crop
    assert crop is not None
    assert crop.box == (0, 0, 100, 64)
    with pytest.raises(DatasetError, match=r"does not lie inside 100×200 px"):
        set_crops(linked, "pictures", {"wide.png": (0, 0, 128, 64)})
    with pytest.raises(DatasetError, match=r"the right side \(0\) must be more than the left one \(100\)"):
        set_crops(linked, "pictures", {"wide.png": (100, 0, 0, 64)})
    painted = Image.new("L", (77, 123), 0)
    painted.paste(255, (0, 0, 77, 40))  # the upper third, as it was painted
    set_mask(linked, "pictures", "odd.jpg", painted)
    set_backgrounds(linked, "pictures", ["odd.jpg"], "white")
    seen = np.asarray(facts_of(linked, "odd.jpg").open())
    assert (seen[45:] == 255).all()
    assert not (seen[:38] == 255).all(-1).any()
    # Turned back, the subject is on the right, where it had been in the file.
    turn_pictures(linked, "pictures", ["odd.jpg"], 90)
    seen = np.asarray(facts_of(linked, "odd.jpg").open())
    assert (seen[:, :78] == 255).all()
    assert not (seen[:, 85:] == 255).all(-1).any()


def test_runs_and_copies_know_of_turns_and_captions_show_them(linked: DatasetStore, data: DataFolder) -> None:
    before = current_version(linked, "pictures")
    turn_pictures(linked, "pictures", ["wide.png"], 90)
    set_crops(linked, "pictures", {"wide.png": (0, 0, 100, 64)})
    now = current_version(linked, "pictures")
    assert now.sha256 != before.sha256
    assert "wide.png: its turn was none, is 90° clockwise" in [str(one) for one in differences(before, now)]
    restore_as_new(linked, data, now, "Copy")
    copy = facts_of(linked, "wide.png", "Copy")
    assert np.array_equal(np.asarray(copy.open()), np.asarray(facts_of(linked, "wide.png").open()))
    captions = CaptionService(data)
    row = next(row for row in captions.page("pictures", CaptionQuery(), "").rows if row.picture.name == "wide.png")
    thumbnail = captions.thumbnail(row.picture)
    assert thumbnail is not None
    with Image.open(thumbnail) as small:
        assert small.size == (100, 64)


def test_the_check_crops_the_bars_of_a_turned_picture_where_they_are(data: DataFolder, tmp_path: Path) -> None:
    folder = tmp_path / "boxed"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for index in range(3):
        image = Image.new("RGB", (320, 240), (0, 0, 0))
        noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        image.paste(noise.resize((320, 180), Image.Resampling.BICUBIC), (0, 60))  # a bar of 60 px above
        image.save(folder / f"{index}.png")
    linked = DatasetStore(data)
    linked.link(folder)
    turn_pictures(linked, "boxed", ["0.png"], 90)
    found = of_check(check_dataset(data, "boxed", CheckSettings(resolution=64)), "borders")
    messages = {finding.pictures[0]: finding.message for finding in found}
    assert messages["0.png"].startswith("has plain bars: right ")
    assert "top" in messages["1.png"]
    fix(linked, "boxed", found)
    turned_facts, plain = facts_of(linked, "0.png", "boxed"), facts_of(linked, "1.png", "boxed")
    assert turned_facts.crop is not None
    assert turned_facts.crop.box[0] == 0
    assert turned_facts.crop.size == (plain.height, plain.width)
    assert np.asarray(turned_facts.open()).max(-1)[:, -3:].mean() > 20  # no bar is left


def test_the_command_turns_lists_and_refuses(
    linked: DatasetStore, data: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(["dataset", "turns", "pictures", *words, "--data-dir", str(data.root)])
        return code, *capsys.readouterr()

    assert run("--turn", "wide.png", "90", "--turn", "odd.jpg", "-90", "--json")[0] == 0
    assert json.loads(run("--json")[1]) == {"turns": {"odd.jpg": 270, "wide.png": 90}}
    assert "wide.png" in run()[1]
    assert "100 x 200" in run()[1]
    for words, said in (
        (("--turn", "wide.png", "45"), "by quarters"),
        (("--turn", "wide.png", "a"), "whole number"),
        (("--turn", "odd.jpg", "90", "--turn", "gone.png", "90"), "no usable picture"),
    ):
        code, _, error = run(*words)
        assert code
        assert said in error
    assert json.loads(run("--unturn", "wide.png", "--json")[1]) == {"turns": {"odd.jpg": 270}}
    assert json.loads(run("--undo", "--json")[1].splitlines()[-1])["turns"]["wide.png"] == 90
