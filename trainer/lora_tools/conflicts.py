"""Where the LoRAs of a stack fight: overlap per pair and block, who takes how much of the change, and weights that settle it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from trainer.errors import LoraFileError
from trainer.lora_tools.overlaps import Overlaps, StackedFile, Sums, measure_overlaps
from trainer.lora_tools.settling import (
    DROWNED,
    Effect,
    Settled,
    Verdict,
    as_is,
    block_text,
    by_blocks,
    effect,
    overall,
    verdict,
)
from trainer.progress import Progress, no_progress

__all__ = ["ConflictReport", "StackedFile", "find_conflicts"]
_DISTURBED = 0.1
_BETTER = 0.02
"""By how much less disturbed weights of blocks must leave the stack, to be suggested in place of one number for all blocks."""


@dataclass(frozen=True)
class PairBlock:
    """Two LoRAs in a block, at their weights.

    Attributes:
        first, second: their places on the stack, from 0.
        cosine: of the angle between their changes as vectors: 1 the same, 0 unrelated, below 0 against each other.
        overlap: mean over the layers of how far the smaller column and row spaces lie in the others, 0 to 1; `chance` is
            what random spaces of these ranks have.
        on_first, on_second: what the other one does along this one's change, as a share of this one's own: -1 undoes it,
            0 leaves it, 1 doubles it.
        verdict: empty where they do not disturb each other.
    """

    first: int
    second: int
    block: str
    layers: int
    cosine: float
    overlap: float
    chance: float
    on_first: float
    on_second: float
    verdict: Verdict


@dataclass(frozen=True)
class BlockShares:
    """How the change of a block is made up: each LoRA's share of the sum of squared norms, at its weights."""

    block: str
    norms: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Suggestion:
    """A LoRA's weights, as they are and as they would settle the conflicts.

    Attributes:
        new_blocks: weights of single blocks, as `trainer.blocks` reads them; empty for all alike.
    """

    file: str
    unet_weight: float
    text_encoder_weight: float
    new_unet_weight: float
    new_text_encoder_weight: float
    new_blocks: str = ""


@dataclass(frozen=True)
class ConflictReport:
    """The figures of a stack. `pairs` and `shares` are block by block, in the model's order; those of the block "all" come last.

    Attributes:
        kept: for each LoRA what the whole stack does along its change, as a share of what it does alone: 1 is undisturbed.
        kept_after: the same with the suggested weights, as a share of what it does alone at its present ones.
        off: for each LoRA how far its blocks are from undisturbed, on average by their share of its change.
        off_after: the same with the suggested weights.
        suggestion: empty where there is nothing to settle.
    """

    files: tuple[str, ...]
    pairs: tuple[PairBlock, ...]
    shares: tuple[BlockShares, ...]
    warnings: tuple[str, ...]
    kept: tuple[float, ...]
    kept_after: tuple[float, ...]
    off: tuple[float, ...]
    off_after: tuple[float, ...]
    suggestion: tuple[Suggestion, ...]
    seconds: float


def find_conflicts(
    stack: Sequence[StackedFile],
    *,
    base: Path | None = None,
    by_block: bool = True,
    progress: Progress = no_progress,
) -> ConflictReport:
    """Measure a stack, layer by layer, from the factors: no dense product where the changes are of low rank.

    Args:
        stack: two files or more, of any kinds and ranks.
        base: the checkpoint for modules that depend on the base model's weights.
        by_block: whether weights of single blocks may be suggested.
        progress: called for every layer; what it raises ends the work.

    Raises: LoraFileError: a file cannot be used, or they are for different models.
    """
    started = time.monotonic()
    if len(stack) < 2:
        raise LoraFileError("One LoRA has nothing to fight with.", fix="Name two or more.")
    overlaps = measure_overlaps(stack, base=base, progress=progress)
    rows = {**overlaps.by_block(), "all": overlaps.whole()}
    pairs = _pairs(rows, len(stack))
    now = effect(overlaps, as_is(overlaps))
    settled = _suggested(overlaps, now, by_block=by_block)
    after = effect(overlaps, settled) if settled else now
    return ConflictReport(
        files=tuple(str(item.path) for item in stack),
        pairs=pairs,
        shares=tuple(_shares(block, sums) for block, sums in rows.items()),
        warnings=_warnings(pairs, [item.path.stem for item in stack]),
        kept=now.kept,
        kept_after=after.kept,
        off=now.off,
        off_after=after.off,
        suggestion=_suggestions(stack, settled) if settled else (),
        seconds=time.monotonic() - started,
    )


def _suggested(overlaps: Overlaps, now: Effect, *, by_block: bool) -> Settled | None:
    """The weights that leave the stack least disturbed; None where they would be the present ones, or nothing is wrong."""
    best, found = None, now
    if any(abs(share - 1) > _DISTURBED for share in now.kept) and (new := overall(overlaps)) != as_is(overlaps):
        best, found = new, effect(overlaps, new)
    if by_block and any(off > _DISTURBED for off in now.off):
        new = by_blocks(overlaps)
        then = effect(overlaps, new)
        is_no_worse = all(mine <= other + _BETTER for mine, other in zip(then.off, found.off, strict=True))
        if is_no_worse and then.mean_off < found.mean_off - _BETTER:
            best = new
    return best


def _suggestions(stack: Sequence[StackedFile], settled: Settled) -> tuple[Suggestion, ...]:
    return tuple(
        Suggestion(str(item.path), item.unet_weight, item.text_encoder_weight, unet, text, block_text(blocks))
        for item, unet, text, blocks in zip(stack, settled.unet, settled.text, settled.blocks, strict=True)
    )


def _pairs(rows: dict[str, Sums], count: int) -> tuple[PairBlock, ...]:
    return tuple(
        found
        for block, sums in rows.items()
        for pair in combinations(range(count), 2)
        if (found := _pair(block, pair, sums)) is not None
    )


def _pair(block: str, pair: tuple[int, int], sums: Sums) -> PairBlock | None:
    """Two LoRAs in a block; None where they have no layer in common, or one of them does nothing."""
    first, second = pair
    overlaps = sums.overlaps.get(pair)
    squares = float(sums.weighted[first, first]), float(sums.weighted[second, second])
    if not overlaps or not all(squares):
        return None
    product = float(sums.weighted[first, second])
    return PairBlock(
        first,
        second,
        block,
        len(overlaps),
        max(-1.0, min(1.0, product / (squares[0] * squares[1]) ** 0.5)),
        sum(overlap for overlap, _ in overlaps) / len(overlaps),
        sum(chance for _, chance in overlaps) / len(overlaps),
        product / squares[0],
        product / squares[1],
        verdict(sums.weighted, first, second),
    )


def _shares(block: str, sums: Sums) -> BlockShares:
    squares = torch.diagonal(sums.weighted)
    total = float(squares.sum())
    shares = tuple(float(value) / total if total else 0.0 for value in squares)
    return BlockShares(block, tuple(float(value) ** 0.5 for value in squares), shares)


def _warnings(pairs: Sequence[PairBlock], titles: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each pair and verdict, with the blocks that it is about."""
    places: dict[tuple[int, int, Verdict], list[str]] = {}
    for pair in pairs:
        if pair.verdict:
            places.setdefault((pair.first, pair.second, pair.verdict), []).append(pair.block)
    told: list[str] = []
    for (first, second, found), blocks in places.items():
        where = "as a whole" if "all" in blocks else f"in {', '.join(blocks[:6])}{' …' if len(blocks) > 6 else ''}"
        names = f"'{titles[first]}' and '{titles[second]}'"
        if found == "drowned":
            told.append(
                f"Of {names} one has less than {DROWNED:.0%} of the change {where}: it will hardly be seen there."
            )
        elif found == "the same twice":
            told.append(f"{names} do much the same {where}: together it is too strong.")
        else:
            told.append(f"{names} work against each other {where}: one takes away what the other does.")
    return tuple(told)
