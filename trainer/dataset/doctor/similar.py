"""Pictures that show the same: found whatever their size, compression, mirroring and a small crop.

Two stages. The signs of the low frequencies of the discrete cosine transform are a hash of 63 bits (after Zauner 2010,
"Implementation and Benchmarking of Perceptual Image Hash Functions"), taken of each picture and of its likely crops; mirroring only turns the
signs of the odd frequencies. Pairs whose hashes are near are then laid over one another: the part of the one that fits the other best must
have nearly the same pixels, up to brightness and contrast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.doctor.measures import THUMB, Measures

VERSION = 1
"""To be raised when other pictures are found to be the same: groups of another version are not believed any more."""
CORRELATION = 0.95
"""Of pixels laid over one another; benchmarks/doctor.py says what it finds and what it mistakes."""
_NEAR_BITS = 14
_KEPT = 8
_WINDOW = 24
_CUTS = (0.0, 0.025, 0.05)
_FINE = tuple(np.arange(0, 0.0801, 0.01).round(3))
_MAX_ASPECT = 0.16
_MIN_SPREAD = 4.0
_ROWS = 256
_TOLD = 100

Progress = Callable[[str, int, int], object]
"""Called with (what is done, how much of it, of how much); what it raises ends the work."""
Span = tuple[float, float]
Flips = tuple[int, int]
_FLIPS: tuple[Flips, ...] = ((1, 1), (1, -1), (-1, 1), (-1, -1))
"""Steps through rows and columns."""


def groups(measures: Sequence[Measures], progress: Progress | None = None) -> list[tuple[int, ...]]:
    """Groups of pictures that show the same, as indexes, in order."""
    tell = progress or (lambda what, done, total: None)
    usable = [index for index, each in enumerate(measures) if each.thumb.std() >= _MIN_SPREAD]
    thumbs = np.array([measures[index].thumb for index in usable], np.float32)
    aspects = np.array([np.log(measures[i].width / measures[i].height) for i in usable])
    parent = list(range(len(usable)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    near = _near(thumbs, aspects, tell)
    for done, (one, other, flips) in enumerate(near, start=1):
        if done % _TOLD == 0 or done == len(near):
            tell("Laying pictures over one another", done, len(near))
        if root(one) != root(other) and _is_same(thumbs[one], thumbs[other][:: flips[0], :: flips[1]]):
            parent[root(other)] = root(one)
    found: dict[int, list[int]] = defaultdict(list)
    for index in range(len(usable)):
        found[root(index)].append(usable[index])
    return sorted(tuple(group) for group in found.values() if len(group) > 1)


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How alike two thumbnails are where one is a part of the other: 1 for the same, up to brightness and contrast."""
    return max(_best_fit(one, other), _best_fit(other, one))


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return _best_fit(one, other) >= CORRELATION or _best_fit(other, one) >= CORRELATION


# --- candidates --------------------------------------------------------------------------------------------------


def _near(thumbs: NDArray[np.float32], aspects: NDArray[np.float64], tell: Progress) -> list[tuple[int, int, Flips]]:
    """Pairs with near hashes, nearest first, each with how the second is mirrored (-1: upside down, left to right)."""
    if len(thumbs) < 2:
        return []
    spans = [(low, 1 - high) for low, high in product(_CUTS, _CUTS)]
    whole = spans.index((0.0, 1.0))
    # Both sides, one side, or the ends of one direction: what people crop.
    crops = [(y, x) for y, x in product(range(len(spans)), repeat=2) if y == x or whole in (y, x)]
    cosines = [_cosines() @ _resample(span, 32) for span in spans]
    hashes = {crop: _hash(cosines[crop[0]] @ thumbs @ cosines[crop[1]].T) for crop in crops}
    plain = hashes[whole, whole]
    found: dict[tuple[int, int], tuple[int, Flips]] = {}
    for start in range(0, len(thumbs), _ROWS):
        tell("Comparing the pictures", start, len(thumbs))
        rows = slice(start, start + _ROWS)
        is_alike = np.abs(aspects[rows, None] - aspects[None]) <= _MAX_ASPECT
        for flips in _FLIPS:
            turned = plain ^ _flip_mask(flips)
            nearest = np.full(is_alike.shape, 64, np.uint8)
            for crop in crops:
                np.minimum(nearest, np.bitwise_count(hashes[crop][rows, None] ^ turned[None]), out=nearest)
            near = is_alike & (nearest <= _NEAR_BITS)
            for row, column in zip(*np.nonzero(near), strict=True):
                one, other = sorted((start + int(row), int(column)))
                key, bits = (one, other), int(nearest[row, column])
                if one != other and bits < found.get(key, (64, flips))[0]:
                    found[key] = (bits, flips)
    pairs = sorted(found.items(), key=lambda item: item[1][0])
    return [(one, other, flips) for (one, other), (_, flips) in pairs]


def _cosines() -> NDArray[np.float32]:
    """The first _KEPT rows of the discrete cosine transform (type II) of 32 values."""
    k, x = np.arange(_KEPT)[:, None], np.arange(32)[None]
    return np.cos(np.pi * k * (2 * x + 1) / 64).astype(np.float32)


def _hash(coefficients: NDArray[np.floating]) -> NDArray[np.uint64]:
    bits = coefficients.reshape(len(coefficients), -1) > 0
    bits[:, 0] = False  # the mean brightness
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _flip_mask(flips: Flips) -> np.uint64:
    odd = (np.arange(_KEPT) % 2).astype(bool)
    mask = (odd[:, None] & (flips[0] < 0)) ^ (odd[None, :] & (flips[1] < 0))
    return np.packbits(mask.ravel()).view(np.uint64)[0]


# --- laying one over the other -----------------------------------------------------------------------------------


def _resample(span: Span, size: int) -> NDArray[np.float32]:
    """Matrix `(size, THUMB)` that takes `size` values from a part of THUMB ones: means over each value's share."""
    edges = np.linspace(span[0] * THUMB, span[1] * THUMB, size + 1)
    pixels = np.arange(THUMB)
    share = np.minimum(edges[1:, None], pixels[None] + 1) - np.maximum(edges[:-1, None], pixels[None])
    weights = np.maximum(share, 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


_SPANS = [(low, 1 - high) for low, high in product(_FINE, _FINE)]
_PARTS = np.stack([_resample(span, _WINDOW) for span in _SPANS])
_WHOLE = _PARTS[_SPANS.index((0.0, 1.0))]
# Two flat matrices, as one large product is a hundred times faster than many small ones.
_ALL_ROWS = np.ascontiguousarray(_PARTS.reshape(-1, THUMB))
_ALL_COLUMNS = np.ascontiguousarray(_ALL_ROWS.T)


def _best_fit(whole: NDArray[np.float32], part: NDArray[np.float32]) -> float:
    """The best correlation of `part` with a part of `whole`: rows and columns are fitted in turn."""
    wanted = _normal(_WHOLE @ np.ascontiguousarray(part) @ _WHOLE.T)
    whole = np.ascontiguousarray(whole)
    columns = _WHOLE
    best = -1.0
    for _ in range(2):
        windows = (_ALL_ROWS @ (whole @ columns.T)).reshape(-1, _WINDOW, _WINDOW)
        rows = _PARTS[int(_scores(windows, wanted).argmax())]
        windows = ((rows @ whole) @ _ALL_COLUMNS).reshape(_WINDOW, -1, _WINDOW).transpose(1, 0, 2)
        scores = _scores(windows, wanted)
        columns = _PARTS[int(scores.argmax())]
        best = max(best, float(scores.max()))
    return best


def _scores(windows: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlations `(n)` of `(n, size, size)` with a window that has mean 0 and norm 1."""
    flat = windows.reshape(len(windows), -1)
    spread = np.sqrt(np.maximum((flat**2).sum(1) - flat.sum(1) ** 2 / flat.shape[1], 1e-6))
    return (flat @ wanted.ravel()) / spread


def _normal(window: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = window - window.mean()
    return centred / (np.linalg.norm(centred) + 1e-6)
