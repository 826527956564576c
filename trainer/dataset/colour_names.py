"""What people call a colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Names by hue in degrees: up to here, and at the end red again.
_HUES = ((15, "red"), (42, "orange"), (70, "yellow"), (165, "green"), (195, "cyan"), (260, "blue"), (310, "purple"))
_HUES_END = ((340, "pink"), (361, "red"))
_GREY_SATURATION = 0.18


def colour_names(pixels: NDArray[np.float64]) -> NDArray[np.str_]:
    """The name of each colour. Args: pixels: shape (n, 3), RGB, 0 to 1."""
    high, low = pixels.max(axis=1), pixels.min(axis=1)
    spread = np.maximum(high - low, 1e-9)
    red, green, blue = pixels.T
    hue = np.where(
        high == red,
        ((green - blue) / spread) % 6,
        np.where(high == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    limits = [limit for limit, _ in (*_HUES, *_HUES_END)]
    words = np.array([name for _, name in (*_HUES, *_HUES_END)])
    named = words[np.searchsorted(limits, hue * 60, side="right").clip(max=len(words) - 1)]
    # A dark or greyish orange is what people call brown.
    named = np.where(np.isin(named, ["orange", "red"]) & (high < 0.65) & (high > 0.2), "brown", named)
    saturation = (high - low) / np.maximum(high, 1e-9)
    named = np.where((named == "red") & (saturation < 0.5) & (high > 0.7), "pink", named)
    grey = np.where(high < 0.2, "black", np.where(high > 0.85, "white", "grey"))
    is_grey = (saturation < _GREY_SATURATION) | (high < 0.2)
    return np.where(is_grey, grey, named)
