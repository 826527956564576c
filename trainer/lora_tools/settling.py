"""Weights that settle the conflicts of a stack: other overall weights, or one LoRA lowered where it fights and only there.

Both are measured by the same figures. A stack is undisturbed where it does along each LoRA's change just what that LoRA
does alone: `kept` is that over all layers, `off` how far each block is from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.block_names import BASE, MID
from trainer.lora_tools.overlaps import PARTS, Overlaps, Place, Sums

AGAINST = -0.2
"""An effect on another LoRA below this is a warning: a fifth of what the other does is taken away."""
DOUBLED = 0.25
"""An effect on another LoRA above this is a warning: a quarter of what the other does is added once more."""
DROWNED = 0.05
"""A share of the change below this is a warning: the others are more than four times as strong together."""
_LEAST, _MOST = 0.25, 1.5
_STEP = 0.05
_LOWERED = 0.1
"""What lowers a LoRA by less in a block is not worth a number."""
_BETTER = 0.02
"""By how much less disturbed the stack must be for another LoRA to be lowered."""

Verdict = Literal["", "against each other", "the same twice", "drowned"]
_NUMBERED = re.compile(r"(IN|OUT)(\d\d)")


@dataclass(frozen=True)
class Settled:
    """Weights that settle a stack.

    Attributes:
        unet, text: the overall weights of each LoRA.
        blocks: for each LoRA the weights of blocks that it is lowered in, by their names.
    """

    unet: tuple[float, ...]
    text: tuple[float, ...]
    blocks: tuple[Mapping[str, float], ...]

    def factors(self, place: Place, overlaps: Overlaps) -> Tensor:
        """What each LoRA's change at a place is multiplied by, as against its present weights: `(n,)`, float64."""
        new = self.unet if place.part == "unet" else self.text
        found = [
            (weight / old if (old := item.weight(place.part)) else 0.0) * lowered.get(place.weighted_as, 1.0)
            for item, weight, lowered in zip(overlaps.stack, new, self.blocks, strict=True)
        ]
        return torch.tensor(found, dtype=torch.float64)


@dataclass(frozen=True)
class Effect:
    """What a stack does, one figure for each LoRA.

    Attributes:
        kept: what the whole stack does along its change, as a share of what it does alone: 1 is undisturbed.
        off: the same block by block: how far from undisturbed a block is, on average, blocks counted by their share of its change.
    """

    kept: tuple[float, ...]
    off: tuple[float, ...]

    @property
    def mean_off(self) -> float:
        """Of all LoRAs."""
        return sum(self.off) / len(self.off)


def as_is(overlaps: Overlaps) -> Settled:
    """The stack's present weights."""
    return Settled(
        tuple(item.unet_weight for item in overlaps.stack),
        tuple(item.text_encoder_weight for item in overlaps.stack),
        tuple({} for _ in overlaps.stack),
    )


def effect(overlaps: Overlaps, settled: Settled) -> Effect:
    """What the stack does with other weights, as shares of what each LoRA does alone at its present ones."""
    count = len(overlaps.stack)
    own, along = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    off = torch.zeros(count, dtype=torch.float64)
    blocks: dict[tuple[str, str], list[Tensor]] = {}
    for place, sums in overlaps.places.items():
        alone, now = torch.diagonal(sums.weighted), sums.weighted @ settled.factors(place, overlaps)
        own += alone
        along += now
        blocks.setdefault((place.part, place.weighted_as), []).append(now - alone)
    for differences in blocks.values():
        off += torch.stack(differences).sum(0).abs()
    return Effect(tuple(_shares(along, own, 1.0)), tuple(_shares(off, own, 0.0)))


def _shares(values: Tensor, of: Tensor, without: float) -> list[float]:
    return [value / whole if whole else without for value, whole in zip(values.tolist(), of.tolist(), strict=True)]


def overall(overlaps: Overlaps) -> Settled:
    """Overall weights with which each LoRA is what it is alone, as far as one number for all blocks can do it."""
    parts = {part: overlaps.of_part(part) for part in PARTS}
    unet, text = (_rounded(parts[part], [item.weight(part) for item in overlaps.stack]) for part in PARTS)
    for index, item in enumerate(overlaps.stack):
        # The weight of a text encoder that it does not change stays that of the UNet, where it was.
        if not float(parts["text"].plain[index, index]) and item.text_encoder_weight == item.unet_weight:
            text[index] = unet[index]
    return Settled(tuple(unet), tuple(text), tuple({} for _ in overlaps.stack))


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


def _rounded(sums: Sums, weights: list[float]) -> list[float]:
    """The settled weights as they can be suggested: of the same sign, a quarter to one and a half of what they were, in steps."""
    found: list[float] = []
    for old, new in zip(weights, settled_weights(sums.plain, weights), strict=True):
        share = min(_MOST, max(_LEAST, new / old)) if old else 0.0
        rounded = round(round(old * share / _STEP) * _STEP, 2)
        found.append(old if abs(rounded - old) <= _STEP / 2 else rounded)
    return found


def by_blocks(overlaps: Overlaps) -> Settled:
    """One LoRA lowered in the blocks where it fights, and only there; then another, as long as that helps."""
    best = as_is(overlaps)
    lowest = effect(overlaps, best).mean_off
    names = overlaps.by_name()
    for _ in overlaps.stack:
        tried = [_lowered(index, best, names) for index in range(len(overlaps.stack))]
        found = min(tried, key=lambda settled: effect(overlaps, settled).mean_off)
        disturbed = effect(overlaps, found).mean_off
        if disturbed > lowest - _BETTER:
            break
        best, lowest = found, disturbed
    return best


def _lowered(index: int, settled: Settled, names: Mapping[str, Sums]) -> Settled:
    """One LoRA lowered wherever it fights, to where all that it touches are least disturbed."""
    lowered = dict(settled.blocks[index])
    for name, sums in names.items():
        if not _fights(sums.weighted, index):
            continue
        factors = torch.tensor([blocks.get(name, 1.0) for blocks in settled.blocks], dtype=torch.float64)
        factor = _least_disturbing(sums.weighted, factors, index)
        if factor <= float(factors[index]) - _LOWERED:
            lowered[name] = factor
    blocks = tuple(lowered if place == index else other for place, other in enumerate(settled.blocks))
    return Settled(settled.unet, settled.text, blocks)


def verdict(weighted: Tensor, first: int, second: int) -> Verdict:
    """What two LoRAs do to each other, of the inner products of their weighted changes, `(n, n)`; both must have one."""
    squares = float(weighted[first, first]), float(weighted[second, second])
    on = [float(weighted[first, second]) / square for square in squares]
    if min(squares) / sum(squares) < DROWNED:
        # First: beside one that is much stronger, the least likeness is large for the weak one.
        return "drowned"
    if min(on) < AGAINST:
        return "against each other"
    return "the same twice" if max(on) > DOUBLED and min(on) > DOUBLED / 2 else ""


def _fights(weighted: Tensor, index: int) -> bool:
    own = torch.diagonal(weighted).tolist()
    others = [other for other in range(len(own)) if other != index and own[other]]
    return bool(own[index]) and any(verdict(weighted, index, other) not in ("", "drowned") for other in others)


def _least_disturbing(weighted: Tensor, factors: Tensor, index: int) -> float:
    """The factor of one LoRA, 0 to 1, that leaves `Σ ((W f)_j - W_jj)² / W_jj` smallest, in steps."""
    used = torch.diagonal(weighted) > 0
    own, column = torch.diagonal(weighted)[used], weighted[used, index]
    missing = own - weighted[used] @ factors + column * factors[index]
    best = float((column * missing / own).sum() / (column.square() / own).sum())
    return round(round(min(1.0, max(0.0, best)) / _STEP) * _STEP, 2)


def block_text(weights: Mapping[str, float]) -> str:
    """Weights of blocks as `trainer.blocks` reads them, neighbours of one weight together: "IN04:0.5,OUT03-OUT05:0"."""
    spans: list[tuple[str, str, float]] = []
    for name, weight in sorted(weights.items(), key=lambda item: _rank(item[0])):
        if spans and spans[-1][2] == weight and _follows(spans[-1][1], name):
            spans[-1] = spans[-1][0], name, weight
        else:
            spans.append((name, name, weight))
    return ",".join(f"{first if first == last else f'{first}-{last}'}:{weight:g}" for first, last, weight in spans)


def _rank(name: str) -> tuple[int, str]:
    return (0 if name == BASE else 2 if name == MID else 1 if name.startswith("IN") else 3), name


def _follows(name: str, after: str) -> bool:
    first, second = _NUMBERED.fullmatch(name), _NUMBERED.fullmatch(after)
    return bool(first and second and first[1] == second[1] and int(second[2]) == int(first[2]) + 1)
