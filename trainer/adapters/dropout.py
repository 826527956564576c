"""Parts of an adapter's change left out at random while training: ranks, rows, whole layers. The draws are torch's own, seeded by the step."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_mask(outputs: Tensor, share: float, dim: int) -> Tensor:
    """kohya's rank dropout of a LoRA: for each sample its own ranks are left out; the others make up for them.

    Args:
        outputs: of `down`, the samples first and the ranks in `dim`.
        share: of ranks left out, in [0, 1).

    Returns: 0 or 1 / (1 - share), of a shape that multiplies `outputs`.
    """
    sides = [1] * outputs.ndim
    sides[0], sides[dim] = outputs.shape[0], outputs.shape[dim]
    return _kept(sides[0] * outputs.shape[dim], share, outputs).view(sides)


def row_mask(delta: Tensor, share: float) -> Tensor:
    """LyCORIS' rank dropout of what is no plain product: rows of ΔW are left out; the others make up for them."""
    return _kept(delta.shape[0], share, delta).view(-1, *(1 for _ in delta.shape[1:]))


def _kept(count: int, share: float, like: Tensor) -> Tensor:
    return (torch.rand(count, device=like.device) >= share).to(like.dtype) / (1 - share)


def module_mask(share: float) -> float:
    """0 where a layer's change is left out of this pass, else 1: times it, every weight has a gradient in every step."""
    return float(torch.rand(()) >= share)
