"""AdamW, torch's own (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101)."""

from __future__ import annotations

import torch

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups

_FUSED = ("cpu", "cuda", "mps", "xpu")


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.AdamW:
    """An optimizer with a group a part."""
    groups = named_groups(config, parameter_groups)
    device = groups[0]["params"][0].device
    return torch.optim.AdamW(
        groups,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        # One kernel for all weights instead of several a weight; the result is the same to rounding.
        fused=device.type in _FUSED,
    )
