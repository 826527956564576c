"""Crops of single pictures: kept, shown, refused, undone. No torch here; what the trainer feeds is in test_dataset_cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare_pictures import noise
from trainer.config.data import DataConfig
from trainer.dataset.cuts import bucket_rows, cuts_of
from trainer.dataset.preparing import set_crops
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import current_version, differences
from trainer.errors import DatasetError

CONFIG = DataConfig(resolution=64, bucket_step=16, resolutions=[96], masks="any")


def facts_of(linked: DatasetStore, name: str) -> PictureFacts:
    return next(facts for facts in linked.scan("pictures").pictures if facts.name == name)


def test_the_box_of_a_cut_is_where_its_pixels_are_from(linked: DatasetStore) -> None:
    """Cut from the whole picture by Pillow's own crop, at a box of whole pixels, the result is the same but for rounding."""
    set_crops(linked, "pictures", {"wide.png": (20, 10, 180, 100)})
    config = CONFIG.model_copy(update={"buckets": False, "resolutions": []})
    cut = next(cut for cut in cuts_of(linked.scan("pictures").usable, config) if cut.facts.name == "wide.png")
    assert cut.box == (55, 10, 145, 100)  # 160 x 90 px at (20, 10), of which the square in the middle
    assert cut.lost == pytest.approx(1 - 90 * 90 / (160 * 90))
    assert cut.scale == pytest.approx(64 / 90)
    image = Image.open(cut.facts.path).crop((55, 10, 145, 100)).resize((64, 64), Image.Resampling.LANCZOS)
    apart = np.abs(np.asarray(image, dtype=int) - np.asarray(cut.picture(), dtype=int))[4:-4, 4:-4]
    assert apart.max() <= 2


def test_the_table_of_buckets_counts_every_picture_once_a_resolution(linked: DatasetStore) -> None:
    rows = bucket_rows(cuts_of(linked.scan("pictures").usable, CONFIG))
    assert sum(row.num_pictures for row in rows) == 2 * 5
    square = next(row for row in rows if (row.bucket.width, row.bucket.height) == (64, 64))
    assert (square.num_pictures, square.mean_lost, square.num_enlarged) == (1, 0, 0)


def test_a_crop_is_kept_shown_undone_and_never_written_to_the_file(linked: DatasetStore, shapes: Path) -> None:
    before, whole = (shapes / "wide.png").read_bytes(), facts_of(linked, "wide.png")
    assert set_crops(linked, "pictures", {"wide.png": (20, 10, 180, 100)})
    facts = facts_of(DatasetStore(linked._data), "wide.png")
    assert (facts.width, facts.height, facts.whole_size) == (160, 90, (200, 100))
    with Image.open(linked.thumbnail(facts, 256)) as shown:
        assert shown.size == (160, 90)
    with Image.open(linked.thumbnail(whole, 256)) as shown:
        assert shown.size == (200, 100)
    change = linked.undo("pictures")
    assert change is not None
    assert change.title == "Crop of wide.png"
    assert facts_of(linked, "wide.png") == whole
    linked.redo("pictures")
    assert facts_of(linked, "wide.png") == facts
    assert set_crops(linked, "pictures", {"wide.png": (0, 0, 200, 100)})  # all of it is no crop
    assert facts_of(linked, "wide.png") == whole
    assert (shapes / "wide.png").read_bytes() == before


@pytest.mark.parametrize("box", [(0, 0, 201, 100), (-1, 0, 100, 100), (50, 0, 50, 100), (0, 0, 31, 100), (1, 2, 3)])
def test_a_crop_that_cannot_be_is_refused_with_its_reason(linked: DatasetStore, box: tuple[int, ...]) -> None:
    with pytest.raises(DatasetError) as caught:
        set_crops(linked, "pictures", {"tall.png": (0, 0, 90, 90), "wide.png": box})
    assert caught.value.where == "wide.png"
    assert linked.history("pictures") == ([], 0)


def test_a_crop_that_does_not_fit_its_file_any_more_is_said_and_not_used(linked: DatasetStore, shapes: Path) -> None:
    set_crops(linked, "pictures", {"wide.png": (100, 0, 200, 100)})
    noise(120, 120, 9).save(shapes / "wide.png")
    (shapes / "wide-masklabel.png").unlink()
    facts = facts_of(linked, "wide.png")
    assert (facts.crop, facts.width) == (None, 120)
    assert any("does not lie inside 120×120" in problem.message for problem in facts.problems)


def test_a_run_writes_its_crops_down(linked: DatasetStore) -> None:
    before = current_version(linked, "pictures")
    set_crops(linked, "pictures", {"wide.png": (20, 10, 180, 100)})
    after = current_version(linked, "pictures")
    assert before.sha256 != after.sha256
    assert [str(one) for one in differences(before, after)] == ["wide.png: its crop was none, is 20, 10, 180, 100"]
