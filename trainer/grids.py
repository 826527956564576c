"""Pictures of pictures: labelled grids. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_LABEL_HEIGHT = 26
_BACKGROUND = (250, 249, 246)
_INK = (40, 38, 36)


def labelled_rows(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 128) -> Image.Image:
    """A grid with a label above each row; every picture is fitted into a square of `cell` pixels.

    Raises: ValueError: there is no row.
    """
    if not rows:
        raise ValueError("A grid needs at least one row.")
    columns = max(len(pictures) for _, pictures in rows)
    row_height = _LABEL_HEIGHT + cell + _MARGIN
    width = _MARGIN + columns * (cell + _MARGIN)
    grid = Image.new("RGB", (width, _MARGIN + len(rows) * row_height), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=15)
    for index, (label, pictures) in enumerate(rows):
        top = _MARGIN + index * row_height
        draw.text((_MARGIN, top + 3), label, fill=_INK, font=font)
        for column, picture in enumerate(pictures):
            fitted = _fit(picture.convert("RGB"), cell)
            left = _MARGIN + column * (cell + _MARGIN)
            grid.paste(fitted, (left + (cell - fitted.width) // 2, top + _LABEL_HEIGHT + (cell - fitted.height) // 2))
    return grid


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
