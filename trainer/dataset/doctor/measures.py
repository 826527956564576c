"""What is measured of a picture: all that the checks need, so that it is decoded once and judged as often as one likes."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from trainer.dataset.doctor.spectrum import absolute_difference, spectrum

VERSION = 1
"""To be raised with every change of what is measured: what was measured before is then measured anew."""
THUMB = 48
EDGES = 64
_WORK_SIDE = 1024
_BAR_SPREAD, _BAR_STEP, _BAR_SHARE = 4.0, 10, 0.6
_MIN_BAR, _MAX_BAR = 0.015, 0.45
_EDGE_STEP = 24
_FAINT_STEP = 0.25
_ROWS = 64

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
        return {**asdict(self), **packed}

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
    small = image.resize((256, 256), Image.Resampling.BOX, reducing_gap=2.0)
    pixels = np.asarray(small)
    thumb = np.asarray(grey_image.resize((THUMB, THUMB), Image.Resampling.BOX))
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
        edges=_edges(small),
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
    """Of both directions the smaller ratio. Rows and columns of the whole picture, as the grid begins at its corner.

    Medians, as the edge of a bar or a table may lie on the grid; and against the strongest of the seven other places in a
    block, as small pictures have few lines of each.
    """
    found = []
    for step, length in ((_steps(grey, axis=1), grey.shape[0]), (_steps(grey, axis=0), grey.shape[1])):
        *others, at_grid = (float(np.median(step[phase::8])) / length for phase in range(8))
        found.append((at_grid + _FAINT_STEP) / (max(others) + _FAINT_STEP))
    return round(float(min(found)), 3)


def _steps(grey: NDArray[np.uint8], axis: int) -> NDArray[np.int64]:
    """The sums of all changes from each column (axis 1) or row (axis 0) to the next."""
    # Few rows at a time: they stay in the processor's cache.
    if axis == 0:
        starts = range(0, len(grey) - 1, _ROWS)
        sums = [absolute_difference(grey[y : y + _ROWS + 1], axis=0).sum(1, dtype=np.uint32) for y in starts]
        return np.concatenate(sums).astype(np.int64)
    step = np.zeros(grey.shape[1] - 1, np.int64)
    for start in range(0, len(grey), _ROWS):
        step += absolute_difference(grey[start : start + _ROWS], axis=1).sum(0, dtype=np.uint32)
    return step


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
    """Whether the first lines of any side are plain when shrunk to a size: so little need be shrunk to tell."""
    wide, high = image.width / size[0], image.height / size[1]
    across, down = (_least_bar(n) for n in size)
    strips = [
        ((across, size[1]), (0, 0, across * wide, image.height)),
        ((across, size[1]), (image.width - across * wide, 0, image.width, image.height)),
        ((size[0], down), (0, 0, image.width, down * high)),
        ((size[0], down), (0, image.height - down * high, image.width, image.height)),
    ]
    for place, (strip, box) in enumerate(strips):
        lines = np.asarray(image.resize(strip, Image.Resampling.BOX, box))
        lines = lines.T if place < 2 else lines
        if _are_plain(lines[::-1] if place % 2 else lines).all():
            return True
    return False


def _least_bar(num_lines: int) -> int:
    return max(3, round(num_lines * _MIN_BAR))


def _bar(lines: NDArray[np.uint8]) -> int:
    """How many of the first lines are a plain bar: one colour, and a straight edge to the picture behind it."""
    least = _least_bar(len(lines))
    # Hardly any picture has bars, and its first lines tell.
    if not _are_plain(lines[:least]).all():
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
    ring = np.concatenate([side.reshape(-1, 3) for side in sides]).astype(np.float32)
    colour = np.median(np.ascontiguousarray(ring.T), 1)
    return (round(float(ring.mean(1).std()), 1), *(int(value) for value in colour))  # type: ignore[return-value]


def _colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    parts = pixels >> 6
    # Pillow counts bytes without widening them first.
    named = Image.fromarray(parts[..., 0] << 4 | parts[..., 1] << 2 | parts[..., 2])
    counts = np.asarray(named.histogram()[:64])
    return np.rint(counts / counts.sum() * 255).astype(np.uint8)


def _edges(small: Image.Image) -> NDArray[np.uint8]:
    grey = np.asarray(small.convert("L").filter(ImageFilter.BoxBlur(0.5)))
    step = np.zeros(grey.shape, np.int16)
    step[:, :-1] = absolute_difference(grey, axis=1)
    step[:-1] += absolute_difference(grey, axis=0)
    # Halves against each other, as a maximum over two short axes is some times slower.
    cells = step
    for _ in range(int(np.log2(256 // EDGES))):
        cells = np.maximum(cells[::2], cells[1::2])
        cells = np.maximum(cells[:, ::2], cells[:, 1::2])
    return np.packbits(cells > _EDGE_STEP)
