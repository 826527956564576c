"""Masks at the size of latents, cut exactly as their pictures are, computed once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.examples import Example
from trainer.data.latents import Progress
from trainer.data.tensor_store import TensorStore, content_key
from trainer.data.variants import Variant
from trainer.dataset.buckets import crop_box
from trainer.dataset.masks import MaskFacts
from trainer.errors import DatasetError
from trainer.files import file_sha256

# Changes when the way from a mask to its tensor changes.
_VERSION = 1


class MaskCache:
    """Masks of examples, on the disk and in memory.

    Args:
        store: where they are kept between runs.
        factor: pixels a latent, on each side.
    """

    def __init__(self, store: TensorStore, factor: int) -> None:
        self._store = store
        self._factor = factor
        self._memory: dict[str, Tensor] = {}

    def key(self, example: Example, variant: Variant) -> str:
        """What a mask follows from: the bytes of its file, and the picture's cut."""
        mask, crop = _mask(example), example.preparation.crop
        part: dict[str, Any] = {} if crop is None else {"part": [*crop.box, *crop.whole]}
        if mask.turn:
            part["turn"] = mask.turn
        return content_key(
            version=_VERSION,
            mask=mask.sha256,
            picture_size=list(example.size),
            size=[example.bucket.width, example.bucket.height],
            crop="centre" if variant.offset is None else list(variant.offset),
            flipped=variant.flipped,
            factor=self._factor,
            **part,
        )

    def prepare(self, wanted: Iterable[tuple[Example, Variant]], progress: Progress) -> None:
        """Compute what is missing.

        Raises: DatasetError: a mask changed since it was scanned, or can no longer be read.
        """
        masked = [(example, variant) for example, variant in wanted if example.mask is not None]
        for done, (example, variant) in enumerate(masked):
            progress(done, len(masked))
            key = self.key(example, variant)
            if key in self._memory:
                continue
            found = self._store.get(key)
            if found is None or found.keys() != {"mask"} or found["mask"].shape != self._shape(example):
                found = {"mask": self._compute(example, variant)}
                self._store.put(key, found)
            self._memory[key] = found["mask"]

    def get(self, example: Example, variant: Variant) -> Tensor:
        """Float32 `(1, h, w)` from 0 (background) to 1; 1 all over where the picture has no mask. KeyError if not prepared."""
        if example.mask is None:
            return torch.ones(self._shape(example))
        return self._memory[self.key(example, variant)]

    def _shape(self, example: Example) -> tuple[int, int, int]:
        return 1, example.bucket.height // self._factor, example.bucket.width // self._factor

    def _compute(self, example: Example, variant: Variant) -> Tensor:
        mask = _mask(example)
        image = mask.coverage()
        if file_sha256(mask.path) != mask.sha256:
            raise DatasetError(
                "A mask was changed while the run was preparing.", where=example.name, fix="Start the run again."
            )
        # The cut in px of the picture, in those of the mask; each latent then gets the mean of what it covers.
        cut, whole = crop_box(*example.size, example.bucket, variant.offset), example.size
        crop = example.preparation.crop
        if crop is not None:
            cut, whole = crop.widen(cut), crop.whole
        left, top, right, bottom = cut
        scale_x, scale_y = image.width / whole[0], image.height / whole[1]
        box = (left * scale_x, top * scale_y, min(right * scale_x, image.width), min(bottom * scale_y, image.height))
        _, height, width = self._shape(example)
        image = image.resize((width, height), Image.Resampling.BOX, box=box)
        if variant.flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image, dtype=np.float32))[None] / 255


def _mask(example: Example) -> MaskFacts:
    if example.mask is None:
        raise ValueError(f"{example.name} has no mask")
    return example.mask
