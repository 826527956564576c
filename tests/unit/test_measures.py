"""The style distance is about style, not about what is where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from trainer.measures import style_distance, to_lab, wasserstein


def scene(seed: int, *, grey: bool = False, blur: float = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (96, 96), (90, 160, 230))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 60, 96, 96), fill=(60, 150, 70))
    x = int(random.integers(5, 60))
    draw.polygon([(x, 60), (x + 15, 25), (x + 30, 60)], fill=(200, 40, 40), outline=(0, 0, 0))
    picture = picture.convert("L").convert("RGB") if grey else picture
    return picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture


def test_same_style_other_content_is_near_and_other_style_is_far() -> None:
    ours = [scene(seed) for seed in range(8)]
    same = style_distance(ours, [scene(seed) for seed in range(20, 28)])
    grey = style_distance(ours, [scene(seed, grey=True) for seed in range(20, 28)])
    soft = style_distance(ours, [scene(seed, blur=3) for seed in range(20, 28)])
    assert same.total < 0.02
    assert grey.colour > 20 * same.colour
    assert soft.edges > 10 * same.edges


def test_zero_to_itself_and_symmetric() -> None:
    first, second = [scene(1), scene(2)], [scene(3, grey=True)]
    assert style_distance(first, first).total == 0
    assert style_distance(first, second).total == pytest.approx(style_distance(second, first).total)


def test_size_of_the_picture_does_not_count() -> None:
    small = [scene(seed) for seed in range(4)]
    large = [picture.resize((384, 384), Image.Resampling.BICUBIC) for picture in small]
    assert style_distance(small, large).total < 0.05


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    assert wasserstein(values, values + 3.0) == pytest.approx(3.0)


def test_lab_of_known_colours() -> None:
    # Bruce Lindbloom's calculator, sRGB D65.
    lab = to_lab(np.array([[[255, 255, 255], [255, 0, 0], [0, 0, 255]]], dtype=np.uint8))[0]
    assert lab[0] == pytest.approx([100, 0, 0], abs=0.02)
    assert lab[1] == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert lab[2] == pytest.approx([32.30, 79.19, -107.86], abs=0.05)


def test_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        style_distance([], [scene(1)])
