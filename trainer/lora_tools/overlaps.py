"""What the changes of several LoRAs have to do with each other, layer by layer, summed over the blocks of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer import block_names
from trainer.blocks import parse_blocks
from trainer.errors import LoraFileError
from trainer.lora_files.architecture import Architecture
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.compare import compare_changes
from trainer.lora_tools.inputs import Lora, matrix_names, open_lora, require_same_architecture
from trainer.lora_tools.names import block_of, in_model_order
from trainer.progress import Progress, no_progress

_UNET = "lora_unet_"
Part = Literal["unet", "text"]
PARTS: tuple[Part, Part] = ("unet", "text")


@dataclass(frozen=True)
class StackedFile:
    """A LoRA of the stack, with its weights as on the stack.

    Attributes:
        blocks: weights of the UNet's blocks, as `trainer.blocks` reads them; its BASE is the text encoders'.
        start, end: the share of the sampling steps in which it works.
    """

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0
    blocks: str = ""
    start: float = 0.0
    end: float = 1.0

    def weight(self, part: Part) -> float:
        """Its weight in a part of the model."""
        return self.unet_weight if part == "unet" else self.text_encoder_weight

    def works_with(self, other: StackedFile) -> bool:
        """Whether there are steps in which both work."""
        return max(self.start, other.start) < min(self.end, other.end)


class Place(NamedTuple):
    """Where layers are: the part, the block of the figures, and the block by whose name it can be weighted (`trainer.blocks`)."""

    part: Part
    block: str
    weighted_as: str


@dataclass
class Sums:
    """What is summed over layers: inner products of all changes at weight 1, and of the weighted ones; overlaps of pairs.

    Weights of blocks are in both. Changes that never work in the same step have nothing to do with each other.

    Attributes:
        plain, weighted: `(n, n)`, float64, for n LoRAs.
        overlaps: for each pair that has layers in common, (overlap, the same by chance) of each of them.
    """

    plain: Tensor
    weighted: Tensor
    overlaps: dict[tuple[int, int], list[tuple[float, float]]]

    @classmethod
    def empty(cls, count: int) -> Sums:
        """Of no layer."""
        zeros = torch.zeros(count, count, dtype=torch.float64)
        return cls(zeros, zeros.clone(), {})

    def add(self, other: Sums) -> None:
        """Take in the sums over other layers."""
        self.plain += other.plain
        self.weighted += other.weighted
        for pair, values in other.overlaps.items():
            self.overlaps.setdefault(pair, []).extend(values)


@dataclass(frozen=True)
class Overlaps:
    """The sums of a stack, place by place in the model's order."""

    stack: tuple[StackedFile, ...]
    places: dict[Place, Sums]

    def by_block(self) -> dict[str, Sums]:
        """The sums over the blocks of the figures."""
        found: dict[str, Sums] = {}
        for place, sums in self.places.items():
            found.setdefault(place.block, self._empty()).add(sums)
        return found

    def by_name(self) -> dict[str, Sums]:
        """The sums over the blocks that have a weight of their own, by its name."""
        found: dict[str, Sums] = {}
        for place, sums in self.places.items():
            found.setdefault(place.weighted_as, self._empty()).add(sums)
        return found

    def of_part(self, part: Part) -> Sums:
        """The sums over a part of the model."""
        found = self._empty()
        for place, sums in self.places.items():
            if place.part == part:
                found.add(sums)
        return found

    def whole(self) -> Sums:
        """The sums over all layers."""
        found = self._empty()
        for sums in self.places.values():
            found.add(sums)
        return found

    def _empty(self) -> Sums:
        return Sums.empty(len(self.stack))


def measure_overlaps(
    stack: Sequence[StackedFile], *, base: Path | None = None, progress: Progress = no_progress
) -> Overlaps:
    """Measure a stack from the factors: no dense product where the changes are of low rank.

    Args:
        stack: the files, of any kinds and ranks.
        base: the checkpoint for modules that depend on the base model's weights.
        progress: called for every layer; what it raises ends the work.

    Raises: LoraFileError: a file cannot be used, they are for different models, or the weights of blocks are for another.
    """
    progress("Reading the files", 0, 1)
    checkpoint = Checkpoint(base) if base else None
    try:
        loras = [open_lora(item.path, checkpoint) for item in stack]
        architecture = require_same_architecture(loras)
        names = [set(matrix_names(lora)) for lora in loras]
        layers = in_model_order(set.union(*names))
        blocks = _block_weights(stack, _per_side(architecture, layers))
        places: dict[Place, Sums] = {}
        for done, name in enumerate(layers, 1):
            place = _place(name)
            own = [table.get(place.weighted_as, 1.0) for table in blocks]
            sums = _layer(name, loras, names, stack, own)
            factors = torch.tensor([item.weight(place.part) for item in stack], dtype=torch.float64)
            sums.weighted = sums.plain * factors[:, None] * factors[None]
            places.setdefault(place, Sums.empty(len(stack))).add(sums)
            progress("Comparing the layers", done, len(layers))
    finally:
        if checkpoint:
            checkpoint.close()
    return Overlaps(tuple(stack), places)


def _block_weights(stack: Sequence[StackedFile], per_side: int) -> list[Mapping[str, float]]:
    """Of each LoRA the weights of the blocks by their names."""
    found: list[Mapping[str, float]] = []
    for item in stack:
        try:
            found.append(parse_blocks(item.blocks).table(per_side))
        except ValueError as error:
            raise LoraFileError(
                f"The block weights of '{item.path.stem}' cannot be used: {error}.",
                where=str(item.path),
                fix="Write other block weights, or none.",
            ) from error
    return found


def _per_side(architecture: Architecture, layers: Iterable[str]) -> int:
    """How many blocks the model has on each side: of a model of no known kind at least those that the files change."""
    if architecture in block_names.LISTS_OF:
        return block_names.LISTS[block_names.LISTS_OF[architecture][0]].per_side
    return block_names.blocks_per_side(f"unet.{block_of(name)}" for name in layers if name.startswith(_UNET))


def _place(name: str) -> Place:
    block = block_of(name)
    if not name.startswith(_UNET):
        return Place("text", block, block_names.BASE)
    path = "conv_in" if name == f"{_UNET}conv_in" else block
    return Place("unet", block, block_names.block_of(f"unet.{path}"))


def _layer(
    name: str,
    loras: Sequence[Lora],
    names: Sequence[set[str]],
    stack: Sequence[StackedFile],
    weights: Sequence[float],
) -> Sums:
    """The inner products in a layer; `weights` are those of its block."""
    changes: dict[int, Change] = {
        index: lora.change(name)
        for index, (lora, known, weight) in enumerate(zip(loras, names, weights, strict=True))
        if name in known and weight
    }
    sums = Sums.empty(len(loras))
    for index, change in changes.items():
        sums.plain[index, index] = (weights[index] * change.norm()) ** 2
    for first, second in combinations(changes, 2):
        if not stack[first].works_with(stack[second]):
            continue
        compared = compare_changes(name, changes[first], changes[second])
        product = weights[first] * weights[second] * compared.product
        sums.plain[first, second] = sums.plain[second, first] = product
        overlap = (compared.overlap_out + compared.overlap_in) / 2
        sums.overlaps[first, second] = [(overlap, compared.chance)]
    return sums
