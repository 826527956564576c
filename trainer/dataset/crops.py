"""Crops that the user set: the part of a picture that counts, as if the file held nothing else. No file is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from trainer.dataset.pictures import MIN_SIDE

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in px of the upright picture as the user turned it; the last two are the first that no longer belong to it."""


@dataclass(frozen=True)
class Crop:
    """A part of a picture: `box` in px of the picture as it lies, upright and turned, whose width and height are `whole`."""

    box: Box
    whole: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the part in px."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def apply(self, image: Image.Image) -> Image.Image:
        """The part of an upright picture of the size `whole`."""
        return image.crop(self.box)

    def widen(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box in px of the part, in px of the whole picture."""
        left, top = self.box[:2]
        return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def crop_of(box: Sequence[float], whole: tuple[int, int]) -> Crop | None:
    """The crop that a box of four numbers makes of a picture of the size `whole`; None where that is all of it.

    Raises: ValueError: its sides are in the wrong order, it is no box inside the picture, or less than `MIN_SIDE` px wide or high.
    """
    if len(box) != 4:
        raise ValueError("a crop has four numbers: left, top, right, bottom")
    left, top, right, bottom = (round(value) for value in box)
    if left >= right or top >= bottom:
        raise ValueError(
            f"the right side ({right}) must be more than the left one ({left}), and the bottom ({bottom}) more than the top ({top})"
        )
    if left < 0 or top < 0 or right > whole[0] or bottom > whole[1]:
        raise ValueError(f"the crop {left}, {top}, {right}, {bottom} does not lie inside {whole[0]}×{whole[1]} px")
    if min(right - left, bottom - top) < MIN_SIDE:
        raise ValueError(f"the crop is {right - left}×{bottom - top} px: both sides must have at least {MIN_SIDE}")
    return None if (left, top, right, bottom) == (0, 0, *whole) else Crop((left, top, right, bottom), whole)
