"""AdamW with its state in 8 bits, or in memory that moves to the CPU when the GPU's is full: those of bitsandbytes.

Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization", https://arxiv.org/abs/2110.02861; paging is from
QLoRA, https://arxiv.org/abs/2305.14314, section 3. Tensors of less than 4096 numbers keep a state of 32 bits.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part, state in 8 bits."""
    return _make("AdamW8bit", config, parameter_groups)


def build_paged(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part, state in 8 bits that is paged."""
    return _make("PagedAdamW8bit", config, parameter_groups)


def build_paged_32bit(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part, state in 32 bits that is paged."""
    return _make("PagedAdamW32bit", config, parameter_groups)


def _make(kind: str, config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    # By name, for it is an optional part.
    make: Any = getattr(importlib.import_module("bitsandbytes.optim"), kind)
    return make(named_groups(config, parameter_groups), betas=(config.beta1, config.beta2), eps=config.epsilon)
