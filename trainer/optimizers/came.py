"""CAME, of the package came-pytorch (Luo et al. 2023, "Confidence-guided Adaptive Memory Efficient Optimization",
https://arxiv.org/abs/2307.02047): Adafactor's small memory, steadier."""

from __future__ import annotations

import torch
from came_pytorch.CAME import CAME

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part."""
    betas = (config.came.beta1, config.came.beta2, config.came.beta3)
    # It wants a default rate, though each group has its own.
    return CAME(named_groups(config, parameter_groups), lr=1.0, betas=betas)
