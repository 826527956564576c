"""Pictures of several shapes, for the tests of crops and cuts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_pictures(folder: Path) -> Path:
    """A wide, a tall and an odd picture; one turned by its EXIF, one partly transparent, and a mask."""
    folder.mkdir()
    noise(200, 100, 0).save(folder / "wide.png")
    noise(90, 260, 1).save(folder / "tall.png")
    noise(123, 77, 2).save(folder / "odd.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(160, 80, 3).save(folder / "turned.jpg", exif=exif)
    clear = noise(100, 100, 4).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((100, 100)))
    clear.save(folder / "clear.png")
    mask = Image.new("L", (100, 50), 0)
    mask.paste(255, (60, 0, 100, 50))
    mask.save(folder / "wide-masklabel.png")
    return folder
