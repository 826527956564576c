"""Quarter turns that the user gives to pictures. No file is changed.

A turn comes after the camera's own orientation and before everything else. Whatever the record keeps of a picture (its crop, its painted
mask) is kept as the file has it, so that a turn that changes later moves nothing on the picture.
"""

from __future__ import annotations

from PIL import Image

from trainer.errors import DatasetError

TURNS = (90, 180, 270)
"""Degrees, clockwise. 0 is a picture as its file has it."""
_WAYS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""Pillow turns the other way round."""

Sides = tuple[float, float, float, float]


def turned(image: Image.Image, turn: int) -> Image.Image:
    """A picture turned clockwise by `turn` degrees, to the pixel."""
    return image if not turn else image.transpose(_WAYS[turn])


def turned_size(size: tuple[int, int], turn: int) -> tuple[int, int]:
    """Width and height of a picture of that size once it is turned."""
    return size if turn in (0, 180) else (size[1], size[0])


def turned_box(box: Sides, size: tuple[int, int], turn: int) -> Sides:
    """Where the box (left, top, right, bottom) of a picture of `size` lies once that is turned."""
    width, height = size
    left, top, right, bottom = box
    match turn:
        case 90:
            return height - bottom, left, height - top, right
        case 180:
            return width - right, height - bottom, width - left, height - top
        case 270:
            return top, width - right, bottom, width - left
        case _:
            return box


def back(turn: int) -> int:
    """The turn that takes another one back."""
    return -turn % 360


def checked_turn(degrees: int) -> int:
    """By how much a picture is turned, from 0 to 270. Raises DatasetError: it is no quarter, half or three-quarter turn."""
    turn = degrees % 360
    if turn not in TURNS:
        raise DatasetError(
            "Pictures are turned by quarters.", where=str(degrees), fix="Give 90 (clockwise), 180 or 270 degrees."
        )
    return turn
