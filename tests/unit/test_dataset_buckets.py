from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset.buckets import Bucket, assign_bucket, crop_box, fit_picture, make_buckets

steps = st.sampled_from([8, 16, 32, 64, 128])
sides = st.integers(32, 12_000)


@st.composite
def settings_of_buckets(draw: st.DrawFn) -> tuple[int, int, float]:
    step = draw(steps)
    resolution = draw(st.integers(math.ceil(step / 8), 256)) * 8
    return resolution, step, draw(st.floats(1, 8))


@settings(deadline=None)
@given(settings_of_buckets())
def test_buckets_have_the_area_of_the_square_and_sides_of_whole_steps(setting: tuple[int, int, float]) -> None:
    resolution, step, max_aspect_ratio = setting
    buckets = make_buckets(resolution, step, max_aspect_ratio)
    assert len(set(buckets)) == len(buckets) > 0
    for bucket in buckets:
        assert bucket.width % step == bucket.height % step == 0
        assert (resolution - step) ** 2 < bucket.width * bucket.height <= resolution**2
        assert max(bucket.aspect_ratio, 1 / bucket.aspect_ratio) <= max_aspect_ratio
        assert Bucket(bucket.height, bucket.width) in buckets


@settings(deadline=None)
@given(settings_of_buckets(), sides, sides)
def test_a_crop_lies_inside_has_the_shape_of_its_bucket_and_is_as_large_as_can_be(
    setting: tuple[int, int, float], width: int, height: int
) -> None:
    buckets = make_buckets(*setting)
    bucket = assign_bucket(width, height, buckets)
    left, top, right, bottom = crop_box(width, height, bucket)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (right - left) / (bottom - top) == pytest.approx(bucket.aspect_ratio, rel=1e-6)
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)
    assert left == pytest.approx(width - right)
    assert top == pytest.approx(height - bottom)


@settings(deadline=None)
@given(settings_of_buckets(), sides, sides)
def test_no_other_bucket_cuts_off_less(setting: tuple[int, int, float], width: int, height: int) -> None:
    buckets = make_buckets(*setting)

    def kept(bucket: Bucket) -> float:
        left, top, right, bottom = crop_box(width, height, bucket)
        return (right - left) * (bottom - top) / (width * height)

    assert kept(assign_bucket(width, height, buckets)) >= max(map(kept, buckets)) - 1e-6


def test_the_usual_sizes() -> None:
    found = [(bucket.width, bucket.height) for bucket in make_buckets(512, 64, 2.0)]
    assert found == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert make_buckets(512, 64, 1.0) == (Bucket(512, 512),)


@pytest.mark.parametrize("setting", [(64, 128, 2.0), (512, 0, 2.0), (512, 64, 0.5)])
def test_impossible_settings_are_refused(setting: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="no buckets"):
        make_buckets(*setting)


def test_fitting_cuts_the_ends_and_keeps_the_middle_undistorted() -> None:
    # A white square in the middle of a long strip stays a square in the middle.
    strip = Image.new("RGB", (400, 100), "black")
    strip.paste("white", (175, 25, 225, 75))
    fitted = np.asarray(fit_picture(strip, Bucket(128, 64)))[:, :, 0] > 127
    assert fitted.shape == (64, 128)
    rows, columns = np.nonzero(fitted)
    assert (rows.min(), rows.max() + 1) == (16, 48)
    assert (columns.min(), columns.max() + 1) == (48, 80)
