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


_TEXT = 15
_LINE = 19
_MAX_LINES = 3
_SIDE_WIDTH = 150
_MOST_PIXELS = 64_000_000


class GridCanvas:
    """A labelled grid that fills up: columns along x, rows along y, a table below the other for each z.

    Args:
        labels: of the columns, the rows and the tables, each at least one; empty texts for an axis that is not used.
        size: width and height of a picture; smaller ones are centred, larger ones made smaller, and all are made smaller
            where the whole would have more than 64 million pixels.
    """

    def __init__(self, labels: tuple[Sequence[str], Sequence[str], Sequence[str]], size: tuple[int, int]) -> None:
        columns, rows, tables = labels
        count = len(columns) * len(rows) * len(tables)
        shrink = min(1.0, (_MOST_PIXELS / (count * size[0] * size[1])) ** 0.5)
        self._cell = max(8, int(size[0] * shrink)), max(8, int(size[1] * shrink))
        self._font = ImageFont.load_default(size=_TEXT)
        heads = [_wrapped(label, self._cell[0], self._font) for label in columns]
        sides = [_wrapped(label, _SIDE_WIDTH, self._font) for label in rows]
        self._left = _MARGIN + (
            max(self._length(line) for side in sides for line in side) + _MARGIN if any(rows) else 0
        )
        self._head = max(len(head) for head in heads) * _LINE + _MARGIN if any(columns) else 0
        self._title = _LABEL_HEIGHT if any(tables) else 0
        self._steps = self._cell[0] + _MARGIN, max(self._cell[1], _MAX_LINES * _LINE if any(rows) else 0) + _MARGIN
        self._table = self._title + self._head + len(rows) * self._steps[1]
        width = self._left + len(columns) * self._steps[0]
        width = max([width, *(self._length(label) + 2 * _MARGIN for label in tables)])
        self.image = Image.new("RGB", (width, _MARGIN + len(tables) * self._table), _BACKGROUND)
        draw = ImageDraw.Draw(self.image)
        for z, label in enumerate(tables):
            top = _MARGIN + z * self._table
            draw.text((_MARGIN, top + 3), label, fill=_INK, font=self._font)
            for x, head in enumerate(heads):
                self._lines(draw, head, (self._left + x * self._steps[0], top + self._title))
            for y, side in enumerate(sides):
                self._lines(draw, side, (_MARGIN, self._corner(0, y, z)[1]))

    def paste(self, picture: Image.Image, x: int, y: int = 0, z: int = 0) -> None:
        """Put a picture into its place; all count from 0."""
        fitted = picture.convert("RGB")
        scale = min(self._cell[0] / fitted.width, self._cell[1] / fitted.height, 1.0)
        if scale < 1:
            size = max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale))
            fitted = fitted.resize(size, Image.Resampling.LANCZOS)
        left, top = self._corner(x, y, z)
        self.image.paste(
            fitted, (left + (self._cell[0] - fitted.width) // 2, top + (self._cell[1] - fitted.height) // 2)
        )

    def say(self, text: str, x: int, y: int = 0, z: int = 0) -> None:
        """Put a sentence where a picture would stand."""
        left, top = self._corner(x, y, z)
        lines = _wrapped(text, self._cell[0], self._font)
        self._lines(ImageDraw.Draw(self.image), lines, (left, top + max(0, self._cell[1] - len(lines) * _LINE) // 2))

    def box(self, x: int, y: int = 0, z: int = 0) -> tuple[int, int, int, int]:
        """Where a picture stands: left, top, right, bottom."""
        left, top = self._corner(x, y, z)
        return left, top, left + self._cell[0], top + self._cell[1]

    def _corner(self, x: int, y: int, z: int) -> tuple[int, int]:
        top = _MARGIN + z * self._table + self._title + self._head
        return self._left + x * self._steps[0], top + y * self._steps[1]

    def _lines(self, draw: ImageDraw.ImageDraw, lines: Sequence[str], at: tuple[int, int]) -> None:
        for index, line in enumerate(lines):
            draw.text((at[0], at[1] + index * _LINE), line, fill=_INK, font=self._font)

    def _length(self, text: str) -> int:
        return int(self._font.getlength(text)) + 1


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A label in lines of that width, cut in words where one is too long, at most three."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1][:-1] + "…"]
    return lines


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    scale = cell / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
