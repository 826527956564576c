"""D-Adaptation's Adam, of the package pytorch-optimizer (Defazio & Mishchenko 2023, "Learning-Rate-Free Learning by
D-Adaptation", https://arxiv.org/abs/2301.07733): the learning rate is found, one for all groups. The authors' own package is no
longer kept up."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer.optimizer.dadapt import DAdaptAdam

from trainer.config.optimizer import OptimizerConfig
from trainer.optimizers.groups import ParameterGroups, named_groups

_SHARED = ("d", "numerator_weighted")


class DAdaptAdamW(DAdaptAdam):
    """DAdaptAdam that leaves groups of a rate of 0 as they are: the package would give them the first group's rate."""

    def step(self, closure: Any = None) -> Any:
        """One update of all groups whose rate is not 0."""
        every = self.param_groups
        moving = [group for group in every if group["lr"] > 0]
        # In a warm-up's first step all rates are 0.
        if not moving:
            return None
        self.param_groups = moving
        try:
            found = super().step(closure)
        finally:
            self.param_groups = every
        # The estimate is one for all: a group that rests goes on with it, and whoever asks any group hears it.
        for group in every:
            group.update({name: moving[0][name] for name in _SHARED if name in moving[0]})
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also puts what the estimate keeps for all weights together to where the weights are."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            device = group["params"][0].device
            group.update({name: value.to(device) for name, value in group.items() if isinstance(value, torch.Tensor)})


def build(config: OptimizerConfig, parameter_groups: ParameterGroups) -> torch.optim.Optimizer:
    """An optimizer with a group a part; weight decay is AdamW's."""
    own = config.dadapt
    return DAdaptAdamW(
        named_groups(config, parameter_groups),
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        d0=own.initial,
        growth_rate=own.growth_rate,
        bias_correction=own.use_bias_correction,
        weight_decouple=True,
    )
