"""Aspect-ratio buckets: the shapes that pictures are cut to, so that a batch has one size. Pure arithmetic and one resize.

The idea is NovelAI's (https://github.com/NovelAI/novelai-aspect-ratio-bucketing), with the area as the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

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


@cache
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


def own_bucket(width: int, height: int, resolution: int, step: int, max_aspect_ratio: float) -> Bucket:
    """The largest bucket that a picture fills without being enlarged; at least one step, at most the area of the square."""
    short = max(step, min(width, height, resolution) // step * step)
    longest = min(max(width, height), int(short * max_aspect_ratio), resolution * resolution // short)
    long = max(step, longest // step * step)
    return Bucket(long, short) if width >= height else Bucket(short, long)


def is_enlarged(width: int, height: int, bucket: Bucket) -> bool:
    """Whether a picture must be enlarged to fill a bucket."""
    return width < bucket.width or height < bucket.height


Offset = tuple[int, int]
"""Where a cut begins: px from the left and from the top of the picture resized for its bucket."""


def crop_box(
    width: int, height: int, bucket: Bucket, offset: Offset | None = None
) -> tuple[float, float, float, float]:
    """The largest part of a picture with the bucket's aspect ratio: (left, top, right, bottom) in px of the picture.

    Args:
        width, height: of the picture.
        bucket: the size that the part is resized to.
        offset: where the part begins, at most `room`; None takes the centre.
    """
    scale = min(width / bucket.width, height / bucket.height)
    cut_width, cut_height = min(bucket.width * scale, width), min(bucket.height * scale, height)
    left, top = (width - cut_width) / 2, (height - cut_height) / 2
    if offset is not None:
        left, top = min(offset[0] * scale, width - cut_width), min(offset[1] * scale, height - cut_height)
    return left, top, left + cut_width, top + cut_height


def room(width: int, height: int, bucket: Bucket) -> Offset:
    """The largest offsets at which the bucket still lies inside the resized picture; one of the two is 0."""
    scale = min(width / bucket.width, height / bucket.height)
    # Rounded first: 3 x (1 / 3) must not lose a pixel.
    return int(round(width / scale, 6)) - bucket.width, int(round(height / scale, 6)) - bucket.height


def fit_picture(image: Image.Image, bucket: Bucket, offset: Offset | None = None) -> Image.Image:
    """The part of `image` at `offset`, by default its centre, cut and resized to the bucket's size (Lanczos)."""
    box = crop_box(image.width, image.height, bucket, offset)
    return image.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS, box=box)


def frame(
    width: int, height: int, bucket: Bucket, *, flipped: bool = False, offset: Offset | None = None
) -> tuple[int, ...]:
    """How a picture of `width` x `height` px was cut for its bucket, as SDXL is told it (arXiv 2307.01952, section 2.2).

    Returns: height and width before; top and left edge of the cut, in pixels after the resizing; height and width after.
    A mirrored picture counts its left edge from the side that is now left. `offset` is that of `crop_box`.
    """
    left, top, right, _ = crop_box(width, height, bucket, offset)
    scale = bucket.width / (right - left)
    edge = width - right if flipped else left
    return height, width, round(top * scale), round(edge * scale), bucket.height, bucket.width
