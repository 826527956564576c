"""What is measured of a picture: all that the checks need, so that it is decoded once and judged as often as one likes."""

from __future__ import annotations

import base64
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.dataset.doctor.spectrum import absolute_difference, spectrum

VERSION = 2
"""To be raised with every change of what is measured: what was measured before is then measured anew."""
THUMB = 48
EDGES = 64
_WORK_SIDE = 1024
_BAR_SPREAD, _BAR_STEP, _BAR_SHARE = 4.0, 10, 0.6
_MIN_BAR, _MAX_BAR = 0.015, 0.45
_EDGE_STEP = 24
_FAINT_STEP = 0.25
_ROWS = 64
_SMALL = 256
_MAX_LINES = 256

Bars = tuple[int, int, int, int]
"""Left, top, right, bottom: px of the picture that are a plain bar."""


@dataclass(frozen=True)
class Measures:
    """Of one picture, as it is trained.

    Attributes:
        width, height: px.
        spectrum: see `trainer.dataset.doctor.spectrum.spectrum`.
        blockiness: steps at the borders of JPEG's blocks of 8 px over those elsewhere; not above 1.15 where there are none.
        jpeg_quality: as the usual encoders count it, 1 to 100; 0 of other formats.
        bars: plain bars at its sides.
        ground: standard deviation of the brightness along its four sides, and their mean colour (R, G, B), from 0 to 255.
        thumb: grey, THUMB x THUMB, squeezed to a square.
        colours: share of each of 4 x 4 x 4 colours, 255 for all.
        edges: EDGES x EDGES bits: where there is an edge.
    """

    width: int
    height: int
    spectrum: tuple[float, ...]
    blockiness: float
    jpeg_quality: int
    bars: Bars
    ground: tuple[float, int, int, int]
    thumb: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    edges: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        packed = {name: base64.b64encode(getattr(self, name).tobytes()).decode() for name in _ARRAYS}
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _ARRAYS}
        return {**plain, **packed}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measures:
        """What `to_json` gave. Raises KeyError, TypeError, ValueError: it is something else."""
        arrays = {name: np.frombuffer(base64.b64decode(data[name]), np.uint8).reshape(s) for name, s in _ARRAYS.items()}
        lists = {name: tuple(data[name]) for name in ("spectrum", "bars", "ground")}
        return cls(**{**data, **lists, **arrays})


_ARRAYS = {"thumb": (THUMB, THUMB), "colours": (64,), "edges": (EDGES * EDGES // 8,)}


def measure(image: Image.Image, jpeg_quality: int = 0) -> Measures:
    """Measure a picture that was read by `trainer.dataset.pictures.read_picture` (RGB, both sides at least 32 px)."""
    grey_image = image.convert("L")
    grey = np.asarray(grey_image)
    # Whole blocks of pixels first, which takes a quarter of the time that the same mean takes at once.
    small = image.resize((_SMALL, _SMALL), Image.Resampling.BOX, reducing_gap=1.0)
    pixels, small_grey = np.asarray(small), small.convert("L")
    thumb = np.asarray(small_grey.resize((THUMB, THUMB), Image.Resampling.BOX))
    return Measures(
        width=image.width,
        height=image.height,
        spectrum=spectrum(grey),
        blockiness=_blockiness(grey),
        jpeg_quality=jpeg_quality,
        bars=_bars(grey_image, grey),
        ground=_ground(pixels),
        thumb=thumb.copy(),
        colours=_colours(pixels),
        edges=_edges(small_grey),
    )


def jpeg_quality(tables: dict[int, list[int]] | None) -> int:
    """The quality at which the usual encoders write these quantisation tables; 0 without any.

    The Independent JPEG Group's encoder scales one table: by 5000 / quality percent below 50, by 200 - 2 x quality above.
    """
    if not tables:
        return 0
    # The smaller half, in which no order of coefficients matters and none is cut off at 255.
    scale = 100 * sum(sorted(tables[min(tables)])[:32]) / _STANDARD_SUM
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return max(1, min(100, round(quality)))


_STANDARD_SUM = 898
"""Of the smaller half of the standard luminance table."""


def _blockiness(grey: NDArray[np.uint8]) -> float:
    """Of both directions the smaller ratio. Whole rows and columns of the picture, as the grid begins at its corner.

    Medians, as the edge of a bar or a table may lie on the grid; and against the strongest of the seven other places in a
    block, as small pictures have few lines of each.
    """
    found = []
    for step, length in (_steps_across(grey), _steps_down(grey)):
        *others, at_grid = np.median(step[: len(step) // 8 * 8].reshape(-1, 8), 0) / length
        found.append((at_grid + _FAINT_STEP) / (max(others) + _FAINT_STEP))
    return round(float(min(found)), 3)


def _steps_across(grey: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """The sums of all changes from each column to the next, and over how many rows: not all, where a few hundred tell."""
    rows = _spread(grey.shape[0], _ROWS)
    step = np.zeros(grey.shape[1] - 1, np.int64)
    for part in rows:
        step += absolute_difference(grey[part], axis=1).sum(0, dtype=np.uint32)
    return step, sum(part.stop - part.start for part in rows)


def _steps_down(grey: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """The same from each row to the next, over how many columns."""
    columns = _spread(grey.shape[1], 2 * _ROWS)
    step = np.zeros(grey.shape[0] - 1, np.int64)
    for part in columns:
        for top in range(0, len(step), _ROWS):
            lines = grey[top : top + _ROWS + 1, part]
            step[top : top + _ROWS] += absolute_difference(lines, axis=0).sum(1, dtype=np.uint32)
    return step, sum(part.stop - part.start for part in columns)


def _spread(num_lines: int, together: int) -> list[slice]:
    """Groups of lines, _MAX_LINES in all at most, all over a picture. Few at a time: they stay in the processor's cache."""
    if num_lines <= _MAX_LINES:
        return [slice(start, min(start + together, num_lines)) for start in range(0, num_lines, together)]
    starts = np.linspace(0, num_lines - together, _MAX_LINES // together).astype(int).tolist()
    return [slice(start, start + together) for start in starts]


def _bars(image: Image.Image, grey: NDArray[np.uint8]) -> Bars:
    scale = max(1.0, max(image.size) / _WORK_SIDE)
    size = (round(image.width / scale), round(image.height / scale))
    if scale > 1 and not _may_have_bars(image, size):
        return (0, 0, 0, 0)
    work = np.asarray(image.resize(size, Image.Resampling.BOX)) if scale > 1 else grey
    sides = [_bar(view) for view in (work.T, work, work.T[::-1], work[::-1])]
    # A pixel more: the border of a bar that was shrunk or compressed is a mixture.
    return tuple(int(np.ceil((thick + 1) * scale)) if thick else 0 for thick in sides)  # type: ignore[return-value]


def _may_have_bars(image: Image.Image, size: tuple[int, int]) -> bool:
    """Whether the first lines of any side are plain when shrunk to a size: so little need be shrunk to tell, mostly the very first."""
    wide, high = image.width / size[0], image.height / size[1]

    def are_plain(side: int, count: int) -> bool:
        strip, box = (
            ((count, size[1]), (0, 0, count * wide, image.height)),
            ((count, size[1]), (image.width - count * wide, 0, image.width, image.height)),
            ((size[0], count), (0, 0, image.width, count * high)),
            ((size[0], count), (0, image.height - count * high, image.width, image.height)),
        )[side]
        lines = np.asarray(image.resize(strip, Image.Resampling.BOX, box))
        lines = lines.T if side < 2 else lines
        return bool(_are_plain(lines[::-1] if side % 2 else lines).all())

    least = [_least_bar(n) for n in (size[0], size[0], size[1], size[1])]
    return any(are_plain(side, 1) and are_plain(side, count) for side, count in enumerate(least))


def _least_bar(num_lines: int) -> int:
    return max(3, round(num_lines * _MIN_BAR))


def _bar(lines: NDArray[np.uint8]) -> int:
    """How many of the first lines are a plain bar: one colour, and a straight edge to the picture behind it."""
    least = _least_bar(len(lines))
    # Hardly any picture has bars, and its first lines tell, mostly the very first.
    if not _are_plain(lines[:1]).all() or not _are_plain(lines[:least]).all():
        return 0
    is_plain, first = _are_plain(lines), lines[0].mean()
    thick = int(np.argmin(is_plain)) if not is_plain.all() else 0
    if not least <= thick <= len(lines) * _MAX_BAR or thick + 3 > len(lines):
        return 0
    # A drawing on white paper has margins too, but no edge all along them.
    step = np.abs(lines[thick : thick + 3].astype(np.int16) - round(first)).max(0)
    return thick if (step > _BAR_STEP).mean() >= _BAR_SHARE else 0


def _are_plain(lines: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which lines are of one colour, the first one's."""
    return (lines.std(1) < _BAR_SPREAD) & (np.abs(lines.mean(1) - lines[0].mean()) < _BAR_SPREAD)


def _ground(pixels: NDArray[np.uint8]) -> tuple[float, int, int, int]:
    sides = [pixels[:6], pixels[-6:], pixels[:, :6], pixels[:, -6:]]
    ring = np.ascontiguousarray(np.concatenate([side.reshape(-1, 3) for side in sides]).T)
    colour = [_median(band) for band in ring]
    brightness = ring.sum(0, dtype=np.uint16) / np.float32(3)
    return (round(float(brightness.std()), 1), *colour)  # type: ignore[return-value]


def _median(values: NDArray[np.uint8]) -> int:
    """Of bytes, which are few enough kinds to be counted."""
    return int(np.searchsorted(np.bincount(values, minlength=256).cumsum(), len(values) // 2, side="right"))


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # A quarter of the pixels: shares are kept in 255ths.
    parts = pixels[::2, ::2] >> 6
    counts = np.bincount((parts[..., 0] << 4 | parts[..., 1] << 2 | parts[..., 2]).ravel(), minlength=64)
    return np.rint(counts / counts.sum() * 255).astype(np.uint8)


def _edges(small: Image.Image) -> NDArray[np.uint8]:
    grey = np.asarray(small)
    # Smoothed by 1, 2, 1 along both axes: in bytes that is some times faster than Pillow's filters.
    for _ in range(2):
        grey = _average(grey[:-1], grey[1:])
        grey = _average(grey[:, :-1], grey[:, 1:])
    # Half of a byte for each direction: a step of that is an edge in any case.
    step = np.zeros((_SMALL, _SMALL), np.uint8)
    step[1:-1, 1:-2] = np.minimum(absolute_difference(grey, axis=1), 127)
    step[1:-2, 1:-1] += np.minimum(absolute_difference(grey, axis=0), 127)
    # Halves against each other, as a maximum over two short axes is some times slower.
    cells = step
    for _ in range(int(np.log2(_SMALL // EDGES))):
        cells = np.maximum(cells[::2], cells[1::2])
        cells = np.maximum(cells[:, ::2], cells[:, 1::2])
    return np.packbits(cells > _EDGE_STEP)


def _average(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded down, without wider numbers on the way."""
    return (one & other) + np.right_shift(one ^ other, np.uint8(1))
