"""Proposed crops: they hold the subject that was put there, and nothing is proposed where there is no need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.prepare_pictures import noise
from trainer.config.data import DataConfig
from trainer.dataset.crops import Crop
from trainer.dataset.cuts import cut_of
from trainer.dataset.preparing import turn_pictures
from trainer.dataset.proposals import Proposal, propose
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.subjects import find_detail, find_faces, finder
from trainer.errors import ConfigError, ResourceError
from trainer.paths import DataFolder

CONFIG = DataConfig(resolution=128, bucket_step=32, max_aspect_ratio=1.5)


def facts_of(image: Image.Image) -> PictureFacts:
    return PictureFacts(Path("a.png"), "a.png", *image.size, sha256="0", caption=None)


def with_square(size: tuple[int, int], place: tuple[int, int], side: int) -> Image.Image:
    image = Image.new("RGB", size, (200, 205, 210))
    image.paste(noise(side, side, 1), place)
    return image


def with_face(size: tuple[int, int], place: tuple[int, int]) -> Image.Image:
    """A face of about 140 x 190 px, plain enough to be drawn here and enough of a face for a cascade."""
    image = Image.new("L", size, 90)
    draw = ImageDraw.Draw(image)
    left, top = place

    def at(*box: int) -> tuple[int, ...]:
        return tuple(value + (left, top)[index % 2] for index, value in enumerate(box))

    draw.ellipse(at(0, 0, 140, 190), fill=190)
    for eye in (25, 85):
        draw.ellipse(at(eye, 70, eye + 30, 88), fill=50)
        draw.rectangle(at(eye - 5, 55, eye + 35, 63), fill=90)
    draw.polygon(at(70, 80, 58, 125, 82, 125), fill=165)
    draw.ellipse(at(42, 145, 98, 163), fill=100)
    return image.filter(ImageFilter.GaussianBlur(3)).convert("RGB")


def held(proposal: Proposal | None, square: tuple[int, int, int, int]) -> float:
    """Share of a box that a proposal holds."""
    if proposal is None:
        return 0.0
    left, top, right, bottom = (
        max(proposal.box[0], square[0]),
        max(proposal.box[1], square[1]),
        min(proposal.box[2], square[2]),
        min(proposal.box[3], square[3]),
    )
    return max(0, right - left) * max(0, bottom - top) / ((square[2] - square[0]) * (square[3] - square[1]))


@pytest.mark.parametrize("place", [(20, 60), (480, 100), (250, 10)])
@pytest.mark.parametrize("size", [(640, 240), (240, 640)])
def test_the_crop_holds_the_subject_and_has_the_shape_of_a_bucket(
    size: tuple[int, int], place: tuple[int, int]
) -> None:
    place = place if size[0] > size[1] else (place[1], place[0])
    square = (*place, place[0] + 96, place[1] + 96)
    image, facts = with_square(size, place, 96), facts_of(Image.new("RGB", size))
    centre = cut_of(facts, CONFIG, CONFIG.resolution)
    wide = propose(facts, image, find_detail, CONFIG)
    if held(Proposal("", tuple(map(round, centre.box)), ""), square) < 0.9:  # type: ignore[arg-type]
        assert held(wide, square) > 0.97
    if wide is not None:
        crop = Crop(wide.box, size)
        cut = cut_of(PictureFacts(Path("a.png"), "a.png", *crop.size, "0", None, crop=crop), CONFIG, 128)
        assert cut.lost < 0.01
        assert min(crop.size) == 240  # as much of the picture as can be
    near = propose(facts, image, find_detail, CONFIG, close=True)
    assert held(near, square) > 0.97
    assert near is not None
    width, height = Crop(near.box, size).size
    assert width * height < 0.5 * size[0] * size[1]
    assert cut_of(PictureFacts(Path("a.png"), "a.png", width, height, "0", None), CONFIG, 128).scale <= 1


def test_nothing_is_proposed_without_need_or_without_a_subject() -> None:
    square = with_square((300, 300), (10, 10), 96)
    assert propose(facts_of(square), square, find_detail, CONFIG) is None  # nothing is cut off
    plain = Image.new("RGB", (640, 240), "grey")
    assert propose(facts_of(plain), plain, find_detail, CONFIG) is None
    assert propose(facts_of(plain), plain, find_faces, CONFIG) is None
    middle = with_square((640, 240), (272, 72), 96)
    assert propose(facts_of(middle), middle, find_detail, CONFIG) is None  # the centre is right


def test_a_face_is_found_where_it_was_drawn() -> None:
    image = with_face((800, 400), (600, 100))
    subject = find_faces(image)
    assert subject is not None
    assert subject.seen == "1 face"
    left, top, right, bottom = np.array(subject.box) * (800, 400, 800, 400)
    assert 560 <= left <= (left + right) / 2 <= right <= 780
    assert 60 <= top <= (top + bottom) / 2 <= bottom <= 310
    proposal = propose(facts_of(image), image, find_faces, CONFIG)
    assert held(proposal, (600, 100, 740, 290)) == 1
    assert held(proposal, (0, 0, 200, 400)) == 0


def test_faces_need_their_library_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no way 'eyes'"):
        finder("eyes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="OpenCV") as caught:
        finder("faces")
    assert "--extra faces" in caught.value.fix
    assert finder("detail") is find_detail


def test_the_command_proposes_accepts_as_one_change_and_leaves_crops_alone(
    store: DatasetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.cli.main import main

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, place in enumerate([(20, 60), (480, 100)]):
        with_square((640, 240), place, 96).save(folder / f"{index}.png")
    with_square((640, 241), (20, 60), 96).save(folder / "cropped.png")
    store.link(folder)
    store.change("pictures", "Crop", {("crops", "cropped.png"): [100, 0, 400, 240]})
    command = ["dataset", "crops", "pictures", "--propose", "detail", "--data-dir", str(tmp_path / "data")]
    assert main(command) == 0
    assert "Nothing is changed yet" in capsys.readouterr().out
    assert len(store.history("pictures")[0]) == 1
    assert main([*command, "--accept"]) == 0
    assert store.history("pictures")[0][-1].title == "Proposed crops of 2 pictures"
    boxes = {facts.name: facts.crop.box for facts in store.scan("pictures").pictures if facts.crop}
    assert boxes["cropped.png"] == (100, 0, 400, 240)
    assert boxes["0.png"][0] == 0
    assert boxes["1.png"][2] == 640
    store.undo("pictures")
    assert [facts.name for facts in store.scan("pictures").pictures if facts.crop] == ["cropped.png"]


def test_where_a_mask_says_what_the_subject_is_nothing_else_is_looked_for(tmp_path: Path) -> None:
    """Much detail at the left, the mask at the right; also when the picture is turned."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with_square((640, 240), (20, 60), 96).save(folder / "a.png")
    mask = Image.new("L", (320, 120), 0)
    mask.paste(255, (250, 30, 300, 80))
    mask.save(folder / "a-masklabel.png")
    store = DatasetStore(DataFolder(tmp_path / "data"))
    store.link(folder)
    for degrees, square in ((0, (500, 60, 600, 160)), (90, (80, 500, 180, 600))):
        if degrees:
            turn_pictures(store, "pictures", ["a.png"], degrees)
        facts = store.scan("pictures").usable[0]
        proposal = propose(facts, facts.open(), find_detail, CONFIG)
        assert proposal is not None
        assert (proposal.seen, held(proposal, square)) == ("its mask", 1.0)
