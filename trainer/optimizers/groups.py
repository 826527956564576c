"""Trained weights as a torch optimizer takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from trainer.config.embedding import GROUP as EMBEDDING
from trainer.config.optimizer import OptimizerConfig

ParameterGroups = Mapping[str, Sequence[nn.Parameter]]
"""Float32 weights by part ("unet", "text_encoder", "embedding"; words after it divide a part), all on one device."""


def named_groups(config: OptimizerConfig, parameter_groups: ParameterGroups) -> list[dict[str, Any]]:
    """A group a part, named by it, at its full learning rate; a rate of 0 also turns its weight decay off.

    Learned vectors have none: what zero is to a LoRA, a word's own vector is to them.
    """
    groups: list[dict[str, Any]] = []
    for name, weights in parameter_groups.items():
        rate = config.learning_rate(name.partition(" ")[0])
        decay = config.weight_decay if rate and name != EMBEDDING else 0.0
        groups.append({"params": list(weights), "name": name, "lr": rate, "weight_decay": decay})
    return groups
