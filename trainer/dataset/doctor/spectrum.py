"""How fine the detail of a picture is: its power by frequency, where it is most detailed.

Natural pictures have a power that falls with the square of the frequency (Field 1987, "Relations between the statistics of
natural images and the response properties of cortical cells"), so the power times the squared frequency is about level up to the
finest detail that is there. Blur and enlarging leave nothing above some frequency.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 16
"""Bands of equal width from 0 to 0.5 cycles a pixel."""
_TILE, _NUM_TILES, _MAX_GRID = 128, 6, 8
_WIDTH = 0.5 / BINS
_CENTRES = (np.arange(BINS) + 0.5) * _WIDTH
_LEVEL = slice(1, 3)
_FLOOR = -1.8
"""Powers of ten below the level of coarse structure at which a band counts as empty."""


def spectrum(grey: NDArray[np.uint8]) -> tuple[float, ...]:
    """Mean power of each band, as log10, over the most detailed parts of a picture.

    Args:
        grey: `(height, width)`, both at least 32.

    Returns: BINS numbers, of the power times the squared frequency.
    """
    side = min(_TILE, 2 ** int(np.log2(min(grey.shape))))
    tiles = _detailed_tiles(grey, side)
    window, band, counts = _bands(side)
    power = np.zeros((side, side // 2 + 1), np.float32)
    # One by one: what one needs stays in the processor's cache, and no new memory is asked of the system.
    for tile in tiles:
        found = np.fft.rfft2((tile - tile.mean()) * window)
        power += found.real**2 + found.imag**2
    power /= len(tiles) * side**2
    sums = np.bincount(band, power.ravel(), BINS + 1)[:BINS]
    return tuple(round(float(v), 2) for v in np.log10(sums / np.maximum(counts, 1) * _CENTRES**2 + 1e-6))


@functools.cache
def _bands(side: int) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]]:
    """For tiles of a side: the window that fades them out, the band of each of their frequencies, and how many each band has."""
    fade = np.hanning(side).astype(np.float32)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    band = np.minimum((radius / _WIDTH).astype(np.intp), BINS).ravel()
    return np.outer(fade, fade), band, np.bincount(band, minlength=BINS + 1)[:BINS]


def absolute_difference(values: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    """How far each value is from the next one along an axis; in eight bits, which is some times faster than in more."""
    front, back = [slice(None)] * values.ndim, [slice(None)] * values.ndim
    front[axis], back[axis] = slice(None, -1), slice(1, None)
    one, other = values[tuple(front)], values[tuple(back)]
    return np.maximum(one, other) - np.minimum(one, other)


def _detailed_tiles(grey: NDArray[np.uint8], side: int) -> list[NDArray[np.float32]]:
    """The parts with the strongest changes from pixel to pixel: a sharp subject before a soft background counts as sharp."""
    places = [np.linspace(0, n - side, min(_MAX_GRID, n // side)).astype(int) for n in grey.shape]
    corners = [(y, x) for y in places[0] for x in places[1]]
    change = [_change(grey[y : y + side, x : x + side]) for y, x in corners]
    chosen = [corners[place] for place in np.argsort(change, kind="stable")[::-1][:_NUM_TILES]]
    return [grey[y : y + side, x : x + side].astype(np.float32) for y, x in chosen]


def _change(tile: NDArray[np.uint8]) -> int:
    """All changes in every eighth row and from it to the next: enough to tell where detail is."""
    rows, below = tile[::8], tile[1::8]
    across = absolute_difference(rows, axis=1)
    down = np.maximum(rows, below) - np.minimum(rows, below)
    return int(across.sum(dtype=np.uint32)) + int(down.sum(dtype=np.uint32))


def finest(bands: Sequence[float]) -> float:
    """The highest frequency with detail, as a share of what the pixels could hold: 1 is pin-sharp, 0.5 has the detail of half the size."""
    values = np.asarray(bands)
    above = np.nonzero(values - values[_LEVEL].mean() > _FLOOR)[0]
    return float((above[-1] + 1) / BINS) if len(above) else 1 / BINS
