"""Pictures as latents, computed once: the VAE's mean and deviation, so that each step still draws a fresh latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.data.examples import Example
from trainer.data.tensor_store import TensorStore, content_key
from trainer.data.variants import PLAIN, Variant
from trainer.errors import DatasetError, ResourceError
from trainer.files import file_sha256
from trainer.models.components import Components
from trainer.models.devices import dtype_name

Progress = Callable[[int, int], None]
"""Called with (done, in all) before each picture."""
# Changes when the way from a picture to its latents changes.
_VERSION = 1
_MEMORY_BYTES = 2 * 2**30


class LatentCache:
    """Latents of examples, on the disk and, up to 2 GiB, in memory.

    Args:
        store: where they are kept between runs.
        components: the VAE that makes them, only used in `prepare`.
        vae_fingerprint: names the VAE's weights in the keys.
    """

    def __init__(self, store: TensorStore, components: Components, vae_fingerprint: str) -> None:
        self._store = store
        self._components = components
        self._vae = {"fingerprint": vae_fingerprint, "precision": dtype_name(components.vae.dtype)}
        self._memory: dict[str, tuple[Tensor, Tensor]] = {}
        self._memory_bytes = 0

    def key(self, example: Example, variant: Variant = PLAIN) -> str:
        """What the latents follow from: the picture's bytes, its cut and colours, and the VAE. Never its name or place."""
        # What most pictures have none of is no part of their address, so that addresses of older runs stay good.
        colours = {} if variant.jitter is None else {"colours": list(variant.jitter)}
        done = example.preparation
        part: dict[str, Any] = {} if done.crop is None else {"part": list(done.crop.box)}
        if done.background is not None:
            part["background"] = done.background.content
        if done.turn:
            part["turn"] = done.turn
        return content_key(
            version=_VERSION,
            picture=example.sha256,
            size=[example.bucket.width, example.bucket.height],
            crop="centre" if variant.offset is None else list(variant.offset),
            flipped=variant.flipped,
            vae=self._vae,
            **colours,
            **part,
        )

    def distinct(self, wanted: Iterable[tuple[Example, Variant]]) -> dict[str, tuple[Example, Variant]]:
        """Each of these latents once, by its address: two pictures of the same bytes need theirs once."""
        return {self.key(example, variant): (example, variant) for example, variant in wanted}

    def prepare(self, wanted: Iterable[tuple[Example, Variant]], progress: Progress) -> int:
        """Compute what is missing; returns how many were computed.

        Raises: DatasetError: a picture changed since it was scanned, or can no longer be read.
        """
        unique = self.distinct(wanted)
        computed = 0
        for done, (key, (example, variant)) in enumerate(unique.items()):
            progress(done, len(unique))
            found = self._read(key, example)
            if found is None:
                found = self._compute(example, variant)
                self._store.put(key, {"mean": found[0], "std": found[1]})
                computed += 1
            self._remember(key, found)
        return computed

    def get(self, example: Example, variant: Variant = PLAIN) -> tuple[Tensor, Tensor]:
        """Mean and deviation, float32 `(channels, h, w)`, on the CPU.

        Raises: ResourceError: the cache on the disk was removed or damaged since `prepare`.
        """
        key = self.key(example, variant)
        found = self._memory.get(key) or self._read(key, example)
        if found is None:
            raise ResourceError(
                f"The cached latents of {example.name} were removed or damaged while training.",
                where=str(self._store.path(key)),
                fix="Resume the run: they are made again.",
            )
        return found

    def _read(self, key: str, example: Example) -> tuple[Tensor, Tensor] | None:
        tensors = self._store.get(key)
        if tensors is None or tensors.keys() != {"mean", "std"}:
            return None
        factor = self._components.vae_scale_factor
        shape = (
            self._components.vae.config.latent_channels,
            example.bucket.height // factor,
            example.bucket.width // factor,
        )
        if tensors["mean"].shape != shape or tensors["std"].shape != shape:
            return None
        return tensors["mean"], tensors["std"]

    def _compute(self, example: Example, variant: Variant) -> tuple[Tensor, Tensor]:
        image = variant.apply(example.preparation.open(example.path), example)
        if file_sha256(example.path) != example.sha256:
            raise DatasetError(
                "A picture was changed while the run was preparing.", where=example.name, fix="Start the run again."
            )
        # One at a time: in a batch the last bits would depend on which others happened to be missing.
        mean, std = self._components.family.encode_images(self._components, to_pixels(image)[None])
        return mean[0].cpu(), std[0].cpu()

    def _remember(self, key: str, found: tuple[Tensor, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in found)
        if key not in self._memory and self._memory_bytes + size <= _MEMORY_BYTES:
            self._memory[key] = found
            self._memory_bytes += size


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB picture as float32 `(3, height, width)` in [-1, 1]."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1.0
