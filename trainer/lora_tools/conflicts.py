"""Where the LoRAs of a stack fight: overlap per pair and block, who takes how much of the change, and weights that settle it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.compare import compare_changes
from trainer.lora_tools.figures import Progress, no_progress
from trainer.lora_tools.inputs import Lora, matrix_names, open_lora, require_same_architecture
from trainer.lora_tools.names import block_of, in_model_order

AGAINST = -0.2
"""An effect on another LoRA below this is a warning: a fifth of what the other does is taken away."""
DOUBLED = 0.25
"""An effect on another LoRA above this is a warning: a quarter of what the other does is added once more."""
DROWNED = 0.05
"""A share of the change below this is a warning: the others are more than four times as strong together."""
_DISTURBED = 0.1
_LEAST, _MOST = 0.25, 1.5
_STEP = 0.05

Verdict = Literal["", "against each other", "the same twice", "drowned"]


@dataclass(frozen=True)
class StackedFile:
    """A LoRA of the stack, with its weights as on the stack."""

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0

    def weight(self, name: str) -> float:
        """Its weight in a layer of this common name."""
        return self.unet_weight if name.startswith("lora_unet_") else self.text_encoder_weight


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
    """A LoRA's weights, as they are and as they would settle the conflicts."""

    file: str
    unet_weight: float
    text_encoder_weight: float
    new_unet_weight: float
    new_text_encoder_weight: float


@dataclass(frozen=True)
class ConflictReport:
    """The figures of a stack. `pairs` and `shares` are block by block, in the model's order; those of the block "all" come last.

    Attributes:
        kept: for each LoRA what the whole stack does along its change, as a share of what it does alone: 1 is undisturbed.
        kept_after: the same with the suggested weights, as a share of what it does alone at its present ones.
        suggestion: empty where there is nothing to settle.
    """

    files: tuple[str, ...]
    pairs: tuple[PairBlock, ...]
    shares: tuple[BlockShares, ...]
    warnings: tuple[str, ...]
    kept: tuple[float, ...]
    kept_after: tuple[float, ...]
    suggestion: tuple[Suggestion, ...]
    seconds: float


@dataclass
class _Sums:
    """What is summed over layers: inner products of all changes at weight 1, and of the weighted ones; overlaps of pairs."""

    plain: Tensor
    weighted: Tensor
    overlaps: dict[tuple[int, int], list[tuple[float, float]]]

    @classmethod
    def empty(cls, count: int) -> _Sums:
        zeros = torch.zeros(count, count, dtype=torch.float64)
        return cls(zeros, zeros.clone(), {})

    def add(self, other: _Sums) -> None:
        self.plain += other.plain
        self.weighted += other.weighted
        for pair, values in other.overlaps.items():
            self.overlaps.setdefault(pair, []).extend(values)


def find_conflicts(
    stack: Sequence[StackedFile], *, base: Path | None = None, progress: Progress = no_progress
) -> ConflictReport:
    """Measure a stack, layer by layer, from the factors: no dense product where the changes are of low rank.

    Args:
        stack: two files or more, of any kinds and ranks.
        base: the checkpoint for modules that depend on the base model's weights.
        progress: called for every layer; what it raises ends the work.

    Raises: LoraFileError: a file cannot be used, or they are for different models.
    """
    started = time.monotonic()
    if len(stack) < 2:
        raise LoraFileError("One LoRA has nothing to fight with.", fix="Name two or more.")
    progress("Reading the files", 0, 1)
    checkpoint = Checkpoint(base) if base else None
    try:
        loras = [open_lora(item.path, checkpoint) for item in stack]
        require_same_architecture(loras)
        names = [set(matrix_names(lora)) for lora in loras]
        layers = in_model_order(set.union(*names))
        blocks: dict[str, _Sums] = {}
        parts = {"unet": _Sums.empty(len(stack)), "text": _Sums.empty(len(stack))}
        for done, name in enumerate(layers, 1):
            sums = _layer(name, loras, names, [item.weight(name) for item in stack])
            blocks.setdefault(block_of(name), _Sums.empty(len(stack))).add(sums)
            parts["unet" if name.startswith("lora_unet_") else "text"].add(sums)
            progress("Comparing the layers", done, len(layers))
    finally:
        if checkpoint:
            checkpoint.close()
    total = _Sums.empty(len(stack))
    for sums in parts.values():
        total.add(sums)
    rows = {**blocks, "all": total}
    pairs = tuple(
        found
        for block, sums in rows.items()
        for pair in combinations(range(len(stack)), 2)
        if (found := _pair(block, pair, sums)) is not None
    )
    new = [
        _settled(parts["unet"].plain, [item.unet_weight for item in stack]),
        _settled(parts["text"].plain, [item.text_encoder_weight for item in stack]),
    ]
    titles = [item.path.stem for item in stack]
    suggestion = tuple(
        _suggest(item, float(parts["text"].plain[index, index]), new[0][index], new[1][index])
        for index, item in enumerate(stack)
    )
    kept = _kept(parts, stack, [[s.unet_weight, s.text_encoder_weight] for s in suggestion])
    is_new = any(abs(share - 1) > _DISTURBED for share in kept) and any(
        (s.unet_weight, s.text_encoder_weight) != (s.new_unet_weight, s.new_text_encoder_weight) for s in suggestion
    )
    after = _kept(parts, stack, [[s.new_unet_weight, s.new_text_encoder_weight] for s in suggestion])
    return ConflictReport(
        files=tuple(str(item.path) for item in stack),
        pairs=pairs,
        shares=tuple(_shares(block, sums) for block, sums in rows.items()),
        warnings=_warnings(pairs, titles),
        kept=kept,
        kept_after=after if is_new else kept,
        suggestion=suggestion if is_new else (),
        seconds=time.monotonic() - started,
    )


def settled_weights(products: Tensor, weights: Sequence[float]) -> list[float]:
    """Weights with which the sum does along each change just what that change does alone at its present weight.

    With changes D and their inner products G = <D_i, D_j>, these are the a of G a = diag(G) w: each change's component
    along another is taken off. Of several solutions (two equal changes) the smallest is taken.

    Args:
        products: G, `(n, n)`, float64.
        weights: w.
    """
    diagonal = torch.diagonal(products)
    sizes = diagonal.sqrt()
    used = sizes > 0
    new = torch.tensor(weights, dtype=torch.float64)
    if int(used.sum()) > 1:
        # In units of each change's own size, so that a small one counts like a large one.
        scaled = products[used][:, used] / sizes[used][:, None] / sizes[used][None]
        target = new[used] * sizes[used]
        new[used] = (torch.linalg.pinv(scaled, rtol=1e-6, hermitian=True) @ target) / sizes[used]
    return new.tolist()


def _settled(products: Tensor, weights: list[float]) -> list[float]:
    """The settled weights as they can be suggested: of the same sign, a quarter to one and a half of what they were, in steps."""
    found: list[float] = []
    for old, new in zip(weights, settled_weights(products, weights), strict=True):
        share = min(_MOST, max(_LEAST, new / old)) if old else 0.0
        rounded = round(round(old * share / _STEP) * _STEP, 2)
        found.append(old if abs(rounded - old) <= _STEP / 2 else rounded)
    return found


def _suggest(item: StackedFile, text_energy: float, unet: float, text: float) -> Suggestion:
    """The weight of a text encoder that it does not change stays that of the UNet, where it was."""
    if not text_energy and item.text_encoder_weight == item.unet_weight:
        text = unet
    return Suggestion(str(item.path), item.unet_weight, item.text_encoder_weight, unet, text)


def _layer(name: str, loras: Sequence[Lora], names: Sequence[set[str]], weights: Sequence[float]) -> _Sums:
    changes: dict[int, Change] = {
        index: lora.change(name) for index, (lora, known) in enumerate(zip(loras, names, strict=True)) if name in known
    }
    sums = _Sums.empty(len(loras))
    for index, change in changes.items():
        sums.plain[index, index] = change.norm() ** 2
    for first, second in combinations(changes, 2):
        compared = compare_changes(name, changes[first], changes[second])
        sums.plain[first, second] = sums.plain[second, first] = compared.product
        overlap = (compared.overlap_out + compared.overlap_in) / 2
        sums.overlaps[first, second] = [(overlap, compared.chance)]
    factors = torch.tensor(weights, dtype=torch.float64)
    sums.weighted = sums.plain * factors[:, None] * factors[None]
    return sums


def _pair(block: str, pair: tuple[int, int], sums: _Sums) -> PairBlock | None:
    """Two LoRAs in a block; None where they have no layer in common, or one of them does nothing."""
    first, second = pair
    overlaps = sums.overlaps.get(pair)
    squares = float(sums.weighted[first, first]), float(sums.weighted[second, second])
    if not overlaps or not all(squares):
        return None
    product = float(sums.weighted[first, second])
    on = product / squares[0], product / squares[1]
    verdict: Verdict = ""
    if min(squares) / sum(squares) < DROWNED:
        # First: beside one that is much stronger, the least likeness is large for the weak one.
        verdict = "drowned"
    elif min(on) < AGAINST:
        verdict = "against each other"
    elif max(on) > DOUBLED and min(on) > DOUBLED / 2:
        verdict = "the same twice"
    return PairBlock(
        first,
        second,
        block,
        len(overlaps),
        max(-1.0, min(1.0, product / (squares[0] * squares[1]) ** 0.5)),
        sum(overlap for overlap, _ in overlaps) / len(overlaps),
        sum(chance for _, chance in overlaps) / len(overlaps),
        *on,
        verdict,
    )


def _shares(block: str, sums: _Sums) -> BlockShares:
    squares = torch.diagonal(sums.weighted)
    total = float(squares.sum())
    shares = tuple(float(value) / total if total else 0.0 for value in squares)
    return BlockShares(block, tuple(float(value) ** 0.5 for value in squares), shares)


def _kept(
    parts: dict[str, _Sums], stack: Sequence[StackedFile], weights: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """What a stack of these weights does along each LoRA's change, by what that does alone at its present weights."""
    found: list[float] = []
    for index, item in enumerate(stack):
        own = along = 0.0
        for part, (sums, old) in enumerate(
            ((parts["unet"], item.unet_weight), (parts["text"], item.text_encoder_weight))
        ):
            own += old * old * float(sums.plain[index, index])
            new = torch.tensor([pair[part] for pair in weights], dtype=torch.float64)
            along += old * float(sums.plain[index] @ new)
        found.append(along / own if own else 1.0)
    return tuple(found)


def _warnings(pairs: Sequence[PairBlock], titles: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each pair and verdict, with the blocks that it is about."""
    places: dict[tuple[int, int, Verdict], list[str]] = {}
    for pair in pairs:
        if pair.verdict:
            places.setdefault((pair.first, pair.second, pair.verdict), []).append(pair.block)
    told: list[str] = []
    for (first, second, verdict), blocks in places.items():
        where = "as a whole" if "all" in blocks else f"in {', '.join(blocks[:6])}{' …' if len(blocks) > 6 else ''}"
        names = f"'{titles[first]}' and '{titles[second]}'"
        if verdict == "drowned":
            told.append(
                f"Of {names} one has less than {DROWNED:.0%} of the change {where}: it will hardly be seen there."
            )
        elif verdict == "the same twice":
            told.append(f"{names} do much the same {where}: together it is too strong.")
        else:
            told.append(f"{names} work against each other {where}: one takes away what the other does.")
    return tuple(told)
