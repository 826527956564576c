"""Which pictures make up a micro-batch, and all that is drawn for it: functions of (seed, step, micro-batch) alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.config.data import DataConfig
from trainer.config.objective import ObjectiveConfig
from trainer.data.captions import one_of, varied
from trainer.data.examples import Example
from trainer.data.latents import LatentCache
from trainer.data.masks import MaskCache
from trainer.data.randomness import generator_for
from trainer.data.showings import Showings
from trainer.data.variants import Variant, Variants
from trainer.dataset.buckets import Bucket
from trainer.objectives.diffusion import (
    draw_timesteps,
    offset_noise,
    perturbed_noise,
    pyramid_noise,
    sample_latents,
)
from trainer.objectives.masking import area_weights


@dataclass(frozen=True)
class Batch:
    """A micro-batch, made on the CPU.

    Attributes:
        examples: the pictures, all of one bucket.
        captions: as they are shown this time; empty where dropped.
        latents, noise: float32 `(batch, channels, h, w)`.
        input_noise: what is put into the pictures: `noise`, unless that is perturbed.
        timesteps: int64 `(batch,)`.
        frames: how the pictures were cut, float32 `(batch, 6)`; see `trainer.dataset.buckets.frame`.
        weights: of the loss on each picture, float32 `(batch,)`.
        area: of the loss on each latent, float32 `(batch, 1, h, w)`; None where all count alike.
    """

    examples: tuple[Example, ...]
    captions: tuple[str, ...]
    latents: Tensor
    noise: Tensor
    input_noise: Tensor
    timesteps: Tensor
    frames: Tensor
    weights: Tensor
    area: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device."""
        tensors = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("latents", "noise", "input_noise", "timesteps", "frames", "weights")
        }
        area = None if self.area is None else self.area.to(device, non_blocking=True)
        return replace(self, **tensors, area=area)


class BatchOrder:
    """The endless sequence of batches over one set of pictures: each epoch shows every picture as often as it should be.

    A bucket's last batch is filled up with pictures of the same bucket, so that all batches are full.

    Args:
        buckets: the bucket of each picture.
        batch_size: pictures a batch.
        shown: showings of each picture in an epoch: a number for all, or what says it for each.
        stream: names the order's random stream, with the run's seed in it.
    """

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, shown: int | Showings, *stream: int | str) -> None:
        self._members: dict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(buckets):
            self._members[bucket].append(index)
        self._batch_size = batch_size
        self._shown = shown
        self._stream = stream
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        counts = self._counts(0)
        self.batches_per_epoch = sum(
            math.ceil(sum(counts[index] for index in members) / batch_size) for members in self._members.values()
        )

    def _counts(self, epoch: int) -> Sequence[int]:
        size = sum(map(len, self._members.values()))
        return [self._shown] * size if isinstance(self._shown, int) else self._shown.counts(epoch)

    def batch(self, number: int) -> list[int]:
        """Indices of the pictures of the `number`-th batch (from 0) since the start of the run."""
        epoch, position = divmod(number, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._arrange(epoch))
        return self._epoch[1][position]

    def _arrange(self, epoch: int) -> list[list[int]]:
        generator = generator_for("order", *self._stream, epoch)
        counts = self._counts(epoch)
        batches: list[list[int]] = []
        for bucket in sorted(self._members):
            members = self._members[bucket]
            rounds = range(max(counts[index] for index in members))
            shown = [index for round_ in rounds for index in members if counts[index] > round_]
            order = [shown[index] for index in torch.randperm(len(shown), generator=generator).tolist()]
            for start in range(0, len(order), self._batch_size):
                batches.append([order[(start + offset) % len(order)] for offset in range(self._batch_size)])
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


class BatchMaker:
    """Puts micro-batches together from cached latents.

    With several processes each draws all that is random in the batch of all, and takes its `part` of it (its number, how
    many there are): what is learned does not depend on how many share the work.

    Args:
        examples: the pictures.
        order: of those.
        latents: of all their variants.
        data, objective: the settings.
        seed: of the run, from which the variants follow.
        masks: of all their variants, where the loss is masked.
        part: the process's number, and how many there are.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        order: BatchOrder,
        latents: LatentCache,
        data: DataConfig,
        objective: ObjectiveConfig,
        *,
        seed: int = 0,
        masks: MaskCache | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._part = part
        self._examples = examples
        self._variants = Variants(data, seed)
        self._masks = masks
        self._latents = latents
        self._data = data
        self._objective = objective
        self.order = order

    def make(self, number: int, *stream: int | str) -> Batch:
        """The `number`-th batch, with everything random in it drawn from `stream`."""
        examples = [self._examples[index] for index in self.order.batch(number)]
        generator = generator_for("draws", *stream)
        size = len(examples)
        # Drawn whether or not they are used, so that switching one off leaves the others' numbers as they were.
        flips = torch.rand(size, generator=generator) < 0.5
        drops = torch.rand(size, generator=generator) < self._data.caption_dropout
        captions = [
            varied(one_of(example.all_captions, *stream, index), self._data, generator, *stream, index)
            for index, example in enumerate(examples)
        ]
        own = self._own(size)
        shown = [
            (example, self._variants.draw(example, flip, *stream, index))
            for index, (example, flip) in enumerate(zip(examples, flips.tolist(), strict=True))
        ][own]
        pairs = [self._latents.get(example, variant) for example, variant in shown]
        mean, std = (torch.stack(column) for column in zip(*pairs, strict=True))
        shape = (size, *mean.shape[1:])
        latents = sample_latents(mean, std, torch.randn(shape, generator=generator)[own])
        noise = self._noise(shape, generator, *stream)
        texts = ["" if drop else text for text, drop in zip(captions, drops.tolist(), strict=True)]
        return Batch(
            examples=tuple(examples[own]),
            captions=tuple(texts[own]),
            latents=latents,
            noise=noise[own],
            input_noise=self._perturbed(noise, *stream)[own],
            timesteps=draw_timesteps(size, self._objective, generator)[own],
            frames=frames_of(shown),
            weights=torch.tensor([example.weight for example, _ in shown], dtype=torch.float32),
            area=self._area(shown),
        )

    def names(self, number: int) -> list[str]:
        """The pictures of the `number`-th batch, those of all processes."""
        return [self._examples[index].name for index in self.order.batch(number)]

    def _own(self, size: int) -> slice:
        index, count = self._part
        return slice(size * index // count, size * (index + 1) // count)

    def _area(self, shown: Sequence[tuple[Example, Variant]]) -> Tensor | None:
        if self._masks is None:
            return None
        masks = torch.stack([self._masks.get(example, variant) for example, variant in shown])
        return area_weights(masks, self._objective.mask_floor, normalised=self._objective.mask_normalised)

    def _noise(self, shape: Sequence[int], generator: torch.Generator, *stream: int | str) -> Tensor:
        objective = self._objective
        noise = torch.randn(*shape, generator=generator)
        offsets = torch.randn(*shape[:2], 1, 1, generator=generator)
        # A stream of its own, as its number of draws depends on the settings.
        coarse = generator_for("pyramid", *stream)
        noise = pyramid_noise(noise, objective.pyramid_noise_levels, objective.pyramid_noise_discount, coarse)
        return offset_noise(noise, offsets, objective.noise_offset)

    def _perturbed(self, noise: Tensor, *stream: int | str) -> Tensor:
        strength = self._objective.input_perturbation
        if strength == 0:
            return noise
        return perturbed_noise(
            noise, torch.randn(noise.shape, generator=generator_for("perturbation", *stream)), strength
        )


def frames_of(shown: Sequence[tuple[Example, Variant]]) -> Tensor:
    """The frames of pictures as they are shown, float32 `(batch, 6)`."""
    return torch.tensor([variant.frame(example) for example, variant in shown], dtype=torch.float32)
