"""Adafactor with the learning rate of the settings, transformers' (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235)."""

from __future__ import annotations

import torch
from transformers.optimization import Adafactor

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part.

    Rates relative to the size of a weight (as torch's own has them, and the paper) would be next to nothing for a LoRA,
    half of whose weights start at zero.
    """
    return Adafactor(
        named_groups(config, parameter_groups),
        decay_rate=-config.adafactor.beta2_decay,
        clip_threshold=config.adafactor.clip_threshold,
        scale_parameter=False,
        relative_step=False,
    )
