"""Schedule-Free AdamW, of the package schedulefree (Defazio et al. 2024, "The Road Less Scheduled",
https://arxiv.org/abs/2405.15682).

What it trains (y) is not what is used (x), an average: `trainer.training.averages` changes between them. Its weighting
by the highest rate so far makes our own warm-up the same as the package's.
"""

from __future__ import annotations

import torch
from schedulefree import AdamWScheduleFree

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part, ready to train."""
    groups = named_groups(config, parameter_groups)
    optimizer = AdamWScheduleFree(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    optimizer.train()
    return optimizer
