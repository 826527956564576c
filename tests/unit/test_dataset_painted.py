"""Painted masks: kept in the record, used instead of files, undone, and brought back with a version."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare_pictures import make_pictures, noise
from trainer.dataset.painted import decode_painted, mask_path
from trainer.dataset.pictures import open_coverage
from trainer.dataset.preparing import set_backgrounds, set_crops, set_mask
from trainer.dataset.restoring import restore_as_new, restore_in_place
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import current_version
from trainer.errors import DatasetError
from trainer.paths import DataFolder


def right_half(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "pictures")


def facts_of(store: DatasetStore, name: str, dataset: str = "pictures") -> PictureFacts:
    return next(facts for facts in store.scan(dataset).pictures if facts.name == name)


def test_a_painted_mask_comes_before_the_file_and_undo_brings_the_file_back(
    store: DatasetStore, data: DataFolder, folder: Path
) -> None:
    store.link(folder)
    before = sorted(path.name for path in folder.iterdir())
    beside = facts_of(store, "wide.png").mask
    assert beside is not None
    assert beside.path == folder / "wide-masklabel.png"
    mask = right_half(100, 50)
    assert set_mask(store, "pictures", "wide.png", mask)
    assert not set_mask(store, "pictures", "wide.png", mask)
    painted = facts_of(DatasetStore(data), "wide.png").mask
    assert painted is not None
    assert painted.path.is_relative_to(data.datasets)
    assert np.array_equal(np.asarray(open_coverage(painted.path)), np.asarray(mask))
    assert (painted.width, painted.height) == (100, 50)
    set_crops(store, "pictures", {"wide.png": (0, 0, 100, 100)})
    assert facts_of(store, "wide.png").mask == painted  # of the whole picture, whatever its crop
    store.undo("pictures")
    store.undo("pictures")
    assert facts_of(store, "wide.png").mask == beside
    store.redo("pictures")
    assert facts_of(store, "wide.png").mask == painted
    set_mask(store, "pictures", "wide.png", None)
    assert facts_of(store, "wide.png").mask == beside
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_mask_of_a_set_of_ours_is_taken_for_no_picture(store: DatasetStore, tmp_path: Path, folder: Path) -> None:
    (folder / "wide-masklabel.png").unlink()
    store.create_from("mine", [folder])
    names = {facts.name for facts in store.scan("mine").pictures}
    set_mask(store, "mine", "wide.png", right_half(200, 100))
    assert {facts.name for facts in store.scan("mine").pictures} == names
    assert store.scan("mine").problems == ()
    # It goes along where a version becomes a data set of its own, and comes back where it is restored.
    version = current_version(store, "mine")
    painted = facts_of(store, "wide.png", "mine").mask
    assert painted is not None
    store.undo("mine")
    restore_in_place(store, version, "Back")
    assert facts_of(store, "wide.png", "mine").mask == painted
    restored = restore_as_new(store, store._data, version, "copy")
    assert restored.problems == ()
    copy = facts_of(store, "wide.png", "copy").mask
    assert copy is not None
    assert copy.sha256 == painted.sha256
    store.delete("mine")
    again = restore_as_new(store, store._data, version, "from the trash")
    assert again.problems == ()


def test_a_mask_that_is_gone_or_does_not_fit_is_said(store: DatasetStore, data: DataFolder, folder: Path) -> None:
    store.link(folder)
    set_mask(store, "pictures", "odd.jpg", right_half(123, 77))
    painted = facts_of(store, "odd.jpg").mask
    assert painted is not None
    mask_path(data.datasets / "pictures", painted.sha256).unlink()
    facts = facts_of(store, "odd.jpg")
    assert facts.mask is None
    assert [problem.code for problem in facts.problems] == ["mask_unreadable"]
    set_mask(store, "pictures", "odd.jpg", right_half(123, 77))  # its file is written anew
    noise(80, 160, 8).save(folder / "odd.jpg")
    facts = facts_of(store, "odd.jpg")
    assert facts.mask is None
    assert [problem.code for problem in facts.problems] == ["mask_shape"]
    with pytest.raises(DatasetError, match="Nothing is painted"):
        set_mask(store, "pictures", "wide.png", Image.new("L", (20, 10), 0))


def test_what_the_browser_sends_is_read_by_its_alpha_and_only_as_a_png() -> None:
    colour = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    colour.paste((255, 0, 0, 255), (20, 0, 40, 20))
    buffer = io.BytesIO()
    colour.save(buffer, format="PNG")
    assert np.array_equal(np.asarray(decode_painted(buffer.getvalue())), np.asarray(right_half(40, 20)))
    for image, kind in ((Image.new("RGB", (40, 20)), "JPEG"), (Image.new("1", (2049, 1)), "PNG")):
        buffer = io.BytesIO()
        image.save(buffer, format=kind)
        with pytest.raises(DatasetError, match="did not arrive whole"):
            decode_painted(buffer.getvalue())
    with pytest.raises(DatasetError, match="did not arrive whole"):
        decode_painted(base64.b64decode("iVBORw0KGgo="))


def test_a_filled_background_is_seen_everywhere_and_needs_a_mask(
    store: DatasetStore, data: DataFolder, folder: Path
) -> None:
    store.link(folder)
    with pytest.raises(DatasetError, match="has no mask"):
        set_backgrounds(store, "pictures", ["tall.png"], "white")
    with pytest.raises(DatasetError, match="no colour"):
        set_backgrounds(store, "pictures", ["wide.png"], "#12")
    whole = store.thumbnail(facts_of(store, "wide.png"), 512)
    set_crops(store, "pictures", {"wide.png": (100, 0, 200, 100)})
    assert set_backgrounds(store, "pictures", ["wide.png"], "#0A141E")
    facts = facts_of(store, "wide.png")
    assert facts.background is not None
    assert facts.background.colour == "#0a141e"
    seen = np.asarray(facts.open())
    file = np.asarray(Image.open(folder / "wide.png"))
    # The mask file says that what is right of 120 px is subject; it is scaled twofold, so its edge is soft.
    assert (seen[:, :18] == (10, 20, 30)).all()
    assert np.array_equal(seen[:, 22:], file[:, 122:])
    assert store.thumbnail(facts, 512) != whole
    assert store.thumbnail(facts.uncut, 512) == whole  # what one paints on
    before = current_version(store, "pictures").sha256
    store.undo("pictures")
    assert facts_of(store, "wide.png").background is None
    assert current_version(store, "pictures").sha256 != before
    store.redo("pictures")
    (folder / "wide-masklabel.png").unlink()
    facts = facts_of(store, "wide.png")
    assert facts.background is None
    assert [problem.code for problem in facts.problems] == ["background"]
