"""How alike two LoRAs are: whether they pull the weights the same way, and whether they use the same directions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import LoraFileError
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.inputs import matrix_names, open_lora, require_same_architecture
from trainer.lora_tools.lowrank import LowRank, Svd, inner, numerical_rank, subspace_overlap
from trainer.lora_tools.names import block_of, in_model_order
from trainer.progress import Progress, no_progress

_DENSE_DIRECTIONS = 64


@dataclass(frozen=True)
class LayerComparison:
    """Two changes of one weight. `product` is their inner product; the overlaps are 0 to 1, `chance` what random ones have."""

    name: str
    norm_first: float
    norm_second: float
    product: float
    overlap_out: float
    overlap_in: float
    chance: float


@dataclass(frozen=True)
class BlockComparison:
    """A block's layers together.

    Attributes:
        cosine: of the angle between the changes as vectors: 1 the same up to strength, 0 unrelated, below 0 against
            each other.
        overlap_out, overlap_in: mean over the layers of how far the smaller column (row) space lies in the other, 0 to 1.
        chance: the overlap that random spaces of these ranks would have on average.
    """

    block: str
    layers: int
    cosine: float
    overlap_out: float
    overlap_in: float
    chance: float
    norm_first: float
    norm_second: float


@dataclass(frozen=True)
class CompareReport:
    """Two files. The figures of `total` are over all layers that both have; `only_…` are layers that one has alone."""

    first: str
    second: str
    total: BlockComparison
    blocks: tuple[BlockComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    seconds: float


def compare_loras(
    first: Path, second: Path, *, base: Path | None = None, progress: Progress = no_progress
) -> CompareReport:
    """Compare two files layer by layer, of any ranks and kinds.

    Args:
        first, second: the files.
        base: the checkpoint for modules that depend on the base model's weights.
        progress: called for every layer; what it raises ends the work.

    Raises: LoraFileError: a file cannot be used, they are for different models, or have no layer in common.
    """
    started = time.monotonic()
    progress("Reading the files", 0, 1)
    checkpoint = Checkpoint(base) if base else None
    try:
        loras = open_lora(first, checkpoint), open_lora(second, checkpoint)
        require_same_architecture(loras)
        names = [matrix_names(lora) for lora in loras]
        shared = in_model_order(set(names[0]) & set(names[1]))
        if not shared:
            raise LoraFileError(
                "The two LoRAs change no layer in common, so there is nothing to compare.", where=str(second)
            )
        layers: list[LayerComparison] = []
        for done, name in enumerate(shared, 1):
            layers.append(compare_changes(name, loras[0].change(name), loras[1].change(name)))
            progress("Comparing the layers", done, len(shared))
    finally:
        if checkpoint:
            checkpoint.close()
    groups: dict[str, list[LayerComparison]] = {}
    for layer in layers:
        groups.setdefault(block_of(layer.name), []).append(layer)
    return CompareReport(
        first=str(first),
        second=str(second),
        total=_together("all", layers),
        blocks=tuple(_together(block, group) for block, group in groups.items()),
        only_first=tuple(in_model_order(set(names[0]) - set(shared))),
        only_second=tuple(in_model_order(set(names[1]) - set(shared))),
        seconds=time.monotonic() - started,
    )


def compare_changes(name: str, first: Change, second: Change) -> LayerComparison:
    """Figures of two changes of one weight. Raises LoraFileError where they are of different sizes."""
    if first.flat_shape != second.flat_shape:
        raise LoraFileError(
            f"The LoRAs change '{name}' in different sizes ({first.shape}, {second.shape}): they are for different base models."
        )
    svds = first.decompose(_DENSE_DIRECTIONS), second.decompose(_DENSE_DIRECTIONS)
    ranks = [numerical_rank(svd.values, first.flat_shape) for svd in svds]
    rows, columns = first.flat_shape
    lefts = [svd.left[:, :rank] for svd, rank in zip(svds, ranks, strict=True)]
    rights = [svd.right[:rank].T for svd, rank in zip(svds, ranks, strict=True)]
    return LayerComparison(
        name,
        svds[0].energy ** 0.5,
        svds[1].energy ** 0.5,
        _product(first, second, svds),
        subspace_overlap(*lefts),
        subspace_overlap(*rights),
        # Random directions fall evenly: the larger space holds its share of each.
        (min(1.0, max(ranks) / rows) + min(1.0, max(ranks) / columns)) / 2,
    )


def _product(first: Change, second: Change, svds: Sequence[Svd]) -> float:
    if isinstance(first.matrix, LowRank) and isinstance(second.matrix, LowRank):
        # Of equal sizes in both factors, so that rounding does not depend on how the file shares them.
        return inner(svds[0].cut(len(svds[0].values)), svds[1].cut(len(svds[1].values)))
    return float((first.dense().double() * second.dense().double()).sum())


def _together(block: str, layers: Sequence[LayerComparison]) -> BlockComparison:
    norms = [sum(layer.norm_first**2 for layer in layers) ** 0.5, sum(layer.norm_second**2 for layer in layers) ** 0.5]
    product = norms[0] * norms[1]
    cosine = sum(layer.product for layer in layers) / product if product else 0.0
    count = len(layers)
    return BlockComparison(
        block=block,
        layers=count,
        cosine=max(-1.0, min(1.0, cosine)),
        overlap_out=sum(layer.overlap_out for layer in layers) / count,
        overlap_in=sum(layer.overlap_in for layer in layers) / count,
        chance=sum(layer.chance for layer in layers) / count,
        norm_first=norms[0],
        norm_second=norms[1],
    )
