"""Prodigy, of the package prodigyopt (Mishchenko & Defazio 2023, https://arxiv.org/abs/2306.06101): Adam that finds its
own learning rate, one for all groups."""

from __future__ import annotations

import torch
from prodigyopt import Prodigy

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part; groups of a rate of 0 are left as they are, all others share one rate."""
    own = config.prodigy
    return Prodigy(
        named_groups(config, parameter_groups),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        d0=own.initial,
        d_coef=own.d_coef,
        use_bias_correction=own.use_bias_correction,
        safeguard_warmup=own.safeguard_warmup,
    )
