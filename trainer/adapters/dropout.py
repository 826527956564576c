"""Parts of an adapter's change left out at random while training: ranks, rows, whole layers. The draws are torch's own, seeded by the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config.adapter import AdapterConfig


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


def drop_ranks(down: nn.Module, config: AdapterConfig) -> None:
    """Let the outputs of a LoRA's `down` (a linear layer or a convolution) lose ranks, and now and then all, while it trains."""
    if not (config.rank_dropout or config.module_dropout):
        return
    dim = -1 if isinstance(down, nn.Linear) else 1

    def hook(module: nn.Module, _inputs: object, outputs: Tensor) -> Tensor:
        if module.training and config.rank_dropout:
            outputs = outputs * rank_mask(outputs, config.rank_dropout, dim)
        if module.training and config.module_dropout:
            outputs = outputs * module_mask(config.module_dropout)
        return outputs

    down.register_forward_hook(hook)
