"""The variants of a picture that are trained in turns: mirrored, cut elsewhere, with other colours. Each can be cached.

What a variant is follows from the run's seed and the picture's bytes, so that the same few come up in every epoch and the
encoder need not stay in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance

from trainer.config.data import DataConfig
from trainer.data.examples import Example
from trainer.data.randomness import generator_for
from trainer.dataset.buckets import Bucket, Offset, fit_picture, room

Jitter = tuple[float, float, float]
"""Factors of brightness, contrast and saturation."""


@dataclass(frozen=True)
class Variant:
    """How a picture is turned into what the VAE sees: cut at `offset` (None: the centre), coloured, then mirrored."""

    flipped: bool = False
    offset: Offset | None = None
    jitter: Jitter | None = None

    def apply(self, image: Image.Image, example: Example) -> Image.Image:
        """The picture in its bucket's size."""
        image = fit_picture(image, example.bucket, self.offset)
        if self.jitter is not None:
            brightness, contrast, saturation = self.jitter
            image = ImageEnhance.Brightness(image).enhance(brightness)
            image = ImageEnhance.Contrast(image).enhance(contrast)
            image = ImageEnhance.Color(image).enhance(saturation)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else image

    def frame(self, example: Example) -> tuple[int, ...]:
        """How the picture was cut, as `trainer.dataset.buckets.frame` says it."""
        return example.frame(flipped=self.flipped, offset=self.offset)


PLAIN = Variant()


class Variants:
    """The variants of every picture under some settings; a function of (settings, seed, picture)."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._data = data
        self._seed = seed
        self._known: dict[tuple[str, Bucket, tuple[int, int]], tuple[list[Offset | None], list[Jitter | None]]] = {}

    def of(self, example: Example) -> tuple[Variant, ...]:
        """All that can be drawn for a picture, each once."""
        offsets, jitters = self._choices(example)
        found = [
            Variant(flipped, offset, jitter)
            for offset in offsets
            for jitter in jitters
            for flipped in ((False, True) if self._data.horizontal_flip else (False,))
        ]
        return tuple(dict.fromkeys(found))

    def draw(self, example: Example, flipped: bool, *stream: int | str) -> Variant:
        """One of them, drawn from `stream`; whether it is mirrored is drawn elsewhere."""
        offsets, jitters = self._choices(example)
        crop = colour = 0
        if len(offsets) > 1 or len(jitters) > 1:
            generator = generator_for("variant", *stream)
            crop, colour = (int(torch.randint(len(each), (), generator=generator)) for each in (offsets, jitters))
        return Variant(flipped and self._data.horizontal_flip, offsets[crop], jitters[colour])

    def _choices(self, example: Example) -> tuple[list[Offset | None], list[Jitter | None]]:
        key = example.sha256, example.bucket, example.size
        if key not in self._known:
            self._known[key] = self._offsets(example), self._jitters(example)
        return self._known[key]

    def _offsets(self, example: Example) -> list[Offset | None]:
        widest = room(*example.size, example.bucket)
        if not self._data.crop_variants or not any(widest):
            return [None]
        return [
            (_whole(widest[0], generator), _whole(widest[1], generator))
            for index in range(self._data.crop_variants)
            for generator in [generator_for("crop", self._seed, example.sha256, index)]
        ]

    def _jitters(self, example: Example) -> list[Jitter | None]:
        found: list[Jitter | None] = [None]
        for index in range(self._data.colour_variants):
            generator = generator_for("colours", self._seed, example.sha256, index)
            factors = 1 + self._data.colour_jitter * (2 * torch.rand(3, generator=generator, dtype=torch.float64) - 1)
            brightness, contrast, saturation = (round(float(factor), 4) for factor in factors)
            found.append((brightness, contrast, saturation))
        return found


def _whole(highest: int, generator: torch.Generator) -> int:
    """A whole number from 0 to `highest`."""
    return int(torch.randint(highest + 1, (), generator=generator))
