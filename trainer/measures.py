"""How far apart two sets of pictures are in style. Numpy and Pillow only.

What people call a style is, to a good approximation, the distribution of local statistics wherever they stand in the
picture (Heeger & Bergen 1995; Gatys et al. 2015, arXiv 1505.07376, pool filter responses over positions for the same
reason). So each picture is turned into local measurements at every pixel, their positions are forgotten, and the two
pooled distributions are compared:

- colour: lightness, and the two chroma axes of CIE L*a*b* (palette, paper tone, saturation);
- edges: gradient magnitude at three scales (line work, softness, texture).

Each is compared by the 1-D Wasserstein distance, which is in the feature's own units and, unlike a histogram
intersection, also falls when the pictures are merely nearer; a fixed scale per feature makes them comparable. Content
changes these statistics too, so both sets must show like content: the same prompts before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

_QUANTILES = np.linspace(0.005, 0.995, 100)
_MEASURE_SIDE = 64
_CHROMA_SCALE = 40.0
_LIGHTNESS_SCALE = 100.0
_EDGE_SCALE = 20.0


@dataclass(frozen=True)
class StyleDistance:
    """Distances between two sets of pictures, 0 for equal distributions; about 1 is as far as day and ink."""

    colour: float
    edges: float

    @property
    def total(self) -> float:
        """Mean of both parts."""
        return (self.colour + self.edges) / 2


def style_distance(pictures: Sequence[Image.Image], reference: Sequence[Image.Image]) -> StyleDistance:
    """The style distance between two sets of RGB pictures of any size.

    Raises: ValueError: a set is empty.
    """
    if not pictures or not reference:
        raise ValueError("Both sets need at least one picture.")
    ours, theirs = _pooled(pictures), _pooled(reference)
    distances = {name: wasserstein(ours[name], theirs[name]) for name in ours}
    colour = (
        distances["lightness"] / _LIGHTNESS_SCALE
        + distances["green_red"] / _CHROMA_SCALE
        + distances["blue_yellow"] / _CHROMA_SCALE
    )
    edges = sum(distances[f"edge_{scale}"] for scale in (1, 2, 4)) / (3 * _EDGE_SCALE)
    return StyleDistance(colour=float(colour), edges=float(edges))


def wasserstein(first: Array, second: Array) -> float:
    """1-D Wasserstein-1 distance between two samples, by 100 quantiles of each."""
    return float(np.mean(np.abs(np.quantile(first, _QUANTILES) - np.quantile(second, _QUANTILES))))


def to_lab(rgb: NDArray[np.uint8]) -> Array:
    """sRGB, shape (height, width, 3), 0-255, to CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15)."""
    value = rgb.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ matrix.T / np.array([0.95047, 1.0, 1.08883])
    cube = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _pooled(pictures: Sequence[Image.Image]) -> dict[str, Array]:
    rows = [_features(picture) for picture in pictures]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _features(picture: Image.Image) -> dict[str, Array]:
    # One scale for all: a line is as wide as it looks, not as many pixels as the file has.
    scale = _MEASURE_SIDE / max(1, min(picture.size))
    size = (max(8, round(picture.width * scale)), max(8, round(picture.height * scale)))
    lab = to_lab(np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)))
    lightness = lab[..., 0]
    features = {"lightness": lightness.ravel(), "green_red": lab[..., 1].ravel(), "blue_yellow": lab[..., 2].ravel()}
    for step in (1, 2, 4):
        blurred = _box_mean(lightness, step)
        vertical = blurred[step:, :-step] - blurred[:-step, :-step]
        horizontal = blurred[:-step, step:] - blurred[:-step, :-step]
        features[f"edge_{step}"] = np.hypot(vertical, horizontal).ravel()
    return features


def _box_mean(values: Array, side: int) -> Array:
    height, width = (length // side * side for length in values.shape)
    if side == 1:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(values[:height, :width], (side, side))
    return windows.mean(axis=(2, 3))
