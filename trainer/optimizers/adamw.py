"""AdamW, torch's own (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from trainer.config.optimizer import AdamWConfig

_FUSED = ("cpu", "cuda", "mps", "xpu")


def build(config: AdamWConfig, parameter_groups: Mapping[str, Sequence[nn.Parameter]]) -> torch.optim.AdamW:
    """An optimizer with a group a part, named by it, at its full learning rate.

    Args:
        config: the settings; `learning_rate` gives the rate of a part.
        parameter_groups: float32 weights by part ("unet", "text_encoder"), all on one device.
    """
    groups = [
        {"params": list(weights), "name": part, "lr": config.learning_rate(part)}
        for part, weights in parameter_groups.items()
    ]
    device = groups[0]["params"][0].device
    return torch.optim.AdamW(
        groups,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        # One kernel for all weights instead of several a weight; the result is the same to rounding.
        fused=device.type in _FUSED,
    )
