"""Aspect-ratio buckets: the shapes that pictures are cut to, so that a batch has one size. Pure arithmetic and one resize.

The idea is NovelAI's (https://github.com/NovelAI/novelai-aspect-ratio-bucketing), with the area as the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels that pictures are cut to."""

    width: int
    height: int

    @property
    def aspect_ratio(self) -> float:
        """Width / height."""
        return self.width / self.height


def make_buckets(resolution: int, step: int, max_aspect_ratio: float) -> tuple[Bucket, ...]:
    """All sizes whose sides are multiples of `step`, with about the area of a square of `resolution`, sorted.

    Args:
        resolution: side of the square in px, >= step.
        step: px, > 0.
        max_aspect_ratio: longest side / shortest side, >= 1. 1 gives the square alone.

    Returns: for every bucket `(resolution - step)² < width · height <= resolution²`, so that no bucket needs more memory
        than the square does.
    Raises: ValueError: the arguments are out of range.
    """
    if step <= 0 or resolution < step or max_aspect_ratio < 1:
        raise ValueError(f"no buckets for resolution {resolution}, step {step}, max_aspect_ratio {max_aspect_ratio}")
    square = resolution // step * step
    sizes = {(square, square)}
    for short in range(step, resolution + 1, step):
        long = resolution * resolution // short // step * step
        if short <= long <= short * max_aspect_ratio:
            sizes |= {(short, long), (long, short)}
    return tuple(sorted(Bucket(width, height) for width, height in sizes))


def assign_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket that cuts the least off a picture: nearest in the logarithm of the aspect ratio, larger area on a tie."""
    ratio = math.log(width / height)
    return min(
        buckets,
        key=lambda bucket: (
            round(abs(math.log(bucket.aspect_ratio) - ratio), 9),
            -bucket.width * bucket.height,
            bucket.width,
        ),
    )


def crop_box(width: int, height: int, bucket: Bucket) -> tuple[float, float, float, float]:
    """The largest centred part of a picture with the bucket's aspect ratio: (left, top, right, bottom) in px."""
    scale = min(width / bucket.width, height / bucket.height)
    cut_width, cut_height = min(bucket.width * scale, width), min(bucket.height * scale, height)
    left, top = (width - cut_width) / 2, (height - cut_height) / 2
    return left, top, left + cut_width, top + cut_height


def fit_picture(image: Image.Image, bucket: Bucket) -> Image.Image:
    """The centre of `image`, cut and resized to the bucket's size (Lanczos)."""
    box = crop_box(image.width, image.height, bucket)
    return image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)


def frame(width: int, height: int, bucket: Bucket, *, flipped: bool = False) -> tuple[int, ...]:
    """How a picture of `width` x `height` px was cut for its bucket, as SDXL is told it (arXiv 2307.01952, section 2.2).

    Returns: height and width before; top and left edge of the cut, in pixels after the resizing; height and width after.
    A mirrored picture counts its left edge from the side that is now left.
    """
    left, top, right, _ = crop_box(width, height, bucket)
    scale = bucket.width / (right - left)
    edge = width - right if flipped else left
    return height, width, round(top * scale), round(edge * scale), bucket.height, bucket.width
