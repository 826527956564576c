"""Pictures like nature's, and what people do to them: for scoring what finds copies, blur and enlargements.

Discs that hide one another, of radii whose density falls with the cube ("dead leaves"), have the edges and the spectrum of
photographs (Lee, Mumford and Huang 2001, "Occlusion Models for Natural Images").
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

Change = Callable[[Image.Image], Image.Image]


def leaves(seed: int, side: int = 192, discs: int = 700) -> Image.Image:
    """A picture that no other seed makes."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (2 * side, 2 * side), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    radii = 1 / np.sqrt(random.uniform(1 / (0.8 * side) ** 2, 1 / 5.0**2, discs))
    for radius, x, y, *colour in zip(
        radii, *random.uniform(0, 2 * side, (2, discs)), *random.integers(0, 255, (3, discs)), strict=True
    ):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=tuple(int(value) for value in colour))
    return image.resize((side, side), Image.Resampling.LANCZOS)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Saved as a JPEG and opened again."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(left: float, top: float, right: float, bottom: float) -> Change:
    """What takes these shares off the sides."""

    def crop(image: Image.Image) -> Image.Image:
        w, h = image.size
        return image.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom))))

    return crop


def resized(factor: float, how: Image.Resampling = Image.Resampling.BICUBIC) -> Change:
    """What makes a picture larger or smaller."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)), how)


COPIES: dict[str, Change] = {
    "half the size": resized(0.5),
    "twice the size": resized(2),
    "JPEG 30": lambda image: compressed(image, 30),
    "5 % off the left": cropped(0.05, 0, 0, 0),
    "5 % off the bottom": cropped(0, 0, 0, 0.05),
    "5 % off all sides": cropped(0.05, 0.05, 0.05, 0.05),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "mirrored, 5 % off, smaller, JPEG 60": lambda image: compressed(
        resized(0.7)(cropped(0, 0.05, 0, 0)(ImageOps.mirror(image))), 60
    ),
}
BLURS: dict[str, Change] = {
    "Gauss 2 px": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "Gauss 3 px, JPEG 85": lambda image: compressed(image.filter(ImageFilter.GaussianBlur(3)), 85),
    "box 9 px": lambda image: image.filter(ImageFilter.BoxBlur(4)),
}
ENLARGEMENTS: dict[str, Change] = {
    "2 times, bicubic": resized(2),
    "2 times, Lanczos": resized(2, Image.Resampling.LANCZOS),
    "2 times, bilinear": resized(2, Image.Resampling.BILINEAR),
    "3 times, bicubic": resized(3),
    "2 times, JPEG 90": lambda image: compressed(resized(2)(image), 90),
}
SHARP: dict[str, Change] = {
    "as it is": lambda image: image,
    "JPEG 80": lambda image: compressed(image, 80),
    "0.8 of the size": resized(0.8, Image.Resampling.LANCZOS),
}
