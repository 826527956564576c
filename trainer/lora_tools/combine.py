"""Formulas that combine several changes of one weight into one. Pure functions of tensors of one shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trim(change: Tensor, density: float) -> Tensor:
    """Keep the share `density` of the elements that are largest in magnitude, and set the others to 0.

    Args:
        change: any shape; one layer's change, as in peft and mergekit (the papers' code trims all layers together).
        density: in (0, 1]; at least one element is kept.
    """
    count = max(1, round(density * change.numel()))
    if count == change.numel():
        return change
    magnitudes = change.abs().flatten()
    threshold = magnitudes.kthvalue(change.numel() - count + 1).values
    return torch.where(change.abs() >= threshold, change, torch.zeros_like(change))


def drop_randomly(change: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each element with the probability `density`, divided by it, so that the expectation is unchanged.

    DARE: Yu et al. 2023, https://arxiv.org/abs/2311.03099, section 3.2, with drop rate `1 - density`.
    """
    kept = torch.rand(change.shape, generator=generator) < density
    return change * kept / density


def weighted_sum(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """`sum of weight * change`."""
    total = changes[0] * weights[0]
    for change, weight in zip(changes[1:], weights[1:], strict=True):
        total.add_(change, alpha=weight)
    return total


def agreeing_mean(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """TIES' election and disjoint merge: per element, the mean of those weighted changes whose sign is the sum's.

    Yadav et al. 2023, https://arxiv.org/abs/2306.01708, algorithm 1. Zeros take no part in the mean. The weights count
    in the election too: a change with a negative weight votes the other way.
    """
    weighted = [change * weight for change, weight in zip(changes, weights, strict=True)]
    total = weighted_sum(weighted, [1.0] * len(weighted))
    sign = total.sign()
    total.zero_()
    count = torch.zeros_like(total)
    for change in weighted:
        agrees = (change.sign() == sign) & (change != 0)
        total.add_(change * agrees)
        count.add_(agrees)
    return total / count.clamp_(min=1)
