"""Lion, of the package lion-pytorch (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
https://arxiv.org/abs/2302.06675): the sign of a mean of gradients."""

from __future__ import annotations

import torch
from lion_pytorch import Lion

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part."""
    return Lion(named_groups(config, parameter_groups), betas=(config.lion.beta1, config.lion.beta2))
