"""Measures of pictures and what is made of them: copies, blur, enlargement, bars, compression."""

from __future__ import annotations

import io
import json
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, JpegImagePlugin

from tests.leaves import BLURS, COPIES, ENLARGEMENTS, SHARP, Change, compressed, leaves
from trainer.dataset.doctor import similar
from trainer.dataset.doctor.checks.compression import BLOCKS
from trainer.dataset.doctor.checks.enlarged import ENLARGED, is_enlarged
from trainer.dataset.doctor.checks.sharpness import BLURRED
from trainer.dataset.doctor.measures import Measures, jpeg_quality, measure
from trainer.dataset.doctor.spectrum import finest


@cache
def originals() -> tuple[Image.Image, ...]:
    return tuple(leaves(seed) for seed in range(8))


@cache
def measured() -> tuple[Measures, ...]:
    return tuple(measure(image) for image in originals())


def test_measures_survive_being_kept() -> None:
    one = measured()[0]
    again = Measures.from_json(json.loads(json.dumps(one.to_json())))
    assert again.to_json() == one.to_json()
    assert (again.thumb == one.thumb).all()


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_others_are_not_taken_for_them(kind: str) -> None:
    copies = [measure(COPIES[kind](image)) for image in originals()]
    groups = similar.groups([*measured(), *copies])
    right = {(index, index + len(copies)) for index in range(len(copies))}
    assert not set(groups) - right  # precision 1
    assert len(right & set(groups)) >= 0.87 * len(right)  # benchmarks/doctor.py has the figures of a larger set


def shares(changes: dict[str, Change]) -> dict[str, list[Measures]]:
    return {kind: [measure(change(image)) for image in originals()[:4]] for kind, change in changes.items()}


def test_blur_is_told_from_sharpness() -> None:
    assert all(finest(m.spectrum) < BLURRED for each in shares(BLURS).values() for m in each)
    assert all(finest(m.spectrum) >= ENLARGED for each in shares(SHARP).values() for m in each)


def test_enlarged_pictures_are_told_from_others() -> None:
    assert all(is_enlarged(m) for each in shares(ENLARGEMENTS).values() for m in each)
    assert not any(is_enlarged(m) for each in shares(SHARP).values() for m in each)


def test_a_sharp_subject_before_a_soft_background_is_sharp() -> None:
    image = BLURS["Gauss 3 px, JPEG 85"](leaves(1, 384))
    image.paste(leaves(2, 160), (40, 40))
    assert finest(measure(image).spectrum) >= ENLARGED


@pytest.mark.parametrize("size", [(32, 32), (33, 500), (1000, 40)])
def test_the_smallest_and_longest_pictures_are_measured(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    found = measure(Image.fromarray(noise))
    assert (found.width, found.height) == size
    assert finest(found.spectrum) == 1
    assert np.isfinite(measure(Image.new("RGB", size)).spectrum).all()


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    buffer = io.BytesIO()
    originals()[0].save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    assert jpeg_quality(JpegImagePlugin.JpegImageFile(buffer).quantization) == pytest.approx(quality, abs=3)


def test_blocks_are_seen_in_any_format() -> None:
    assert measure(compressed(originals()[0], 10)).blockiness > BLOCKS
    assert all(each.blockiness < 1.2 for each in measured())
    assert measure(compressed(originals()[0], 85)).blockiness < BLOCKS
    boxed = Image.new("RGB", (192, 256), (0, 0, 0))  # bars that end on the grid
    boxed.paste(originals()[0], (0, 32))
    assert measure(boxed).blockiness < 1.2


def test_bars_are_measured_and_margins_of_drawings_are_none() -> None:
    boxed = Image.new("RGB", (192, 256), (0, 0, 0))
    boxed.paste(originals()[0], (0, 32))
    left, top, right, bottom = measure(boxed).bars
    assert (left, right) == (0, 0)
    assert 32 <= top <= 34
    assert 32 <= bottom <= 34
    assert measure(compressed(boxed, 60)).bars[1] in range(32, 38)
    drawing = Image.new("RGB", (256, 256), (255, 255, 255))
    ImageDraw.Draw(drawing).ellipse((60, 60, 200, 200), fill=(20, 20, 60))
    assert measure(drawing).bars == (0, 0, 0, 0)
    assert not any(any(each.bars) for each in measured())


@pytest.mark.parametrize("side", range(4))
def test_a_bar_at_any_side_of_a_large_picture_is_measured(side: int) -> None:
    large = originals()[0].resize((1500, 1300))
    large.paste((0, 0, 0), [(0, 0, 90, 1300), (0, 0, 1500, 90), (1410, 0, 1500, 1300), (0, 1210, 1500, 1300)][side])
    bars = measure(large).bars
    assert 90 <= bars[side] <= 94
    assert not any(bars[:side] + bars[side + 1 :])
