"""The average of the trained weights over the steps (EMA), diffusers' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of weights that starts fast: the decay of step n is min(decay, n / (9 + n)).

    Args:
        weights: what is averaged, as it is now.
        decay: share of the average that stays in a step, in (0, 1).
    """

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self._weights = list(weights)
        self._average = EMAModel(self._weights, decay=decay, foreach=True)

    def update(self) -> None:
        """Take the weights of one more step in."""
        self._average.step(self._weights)

    def write(self) -> None:
        """Put the average in the weights' place."""
        self._average.copy_to(self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the weights' numbers, not copied."""
        return {str(index): tensor for index, tensor in enumerate(self._average.shadow_params)}

    def load_state_dict(self, state: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from the average of `state_dict` after `num_updates` updates."""
        with torch.no_grad():
            for index, tensor in enumerate(self._average.shadow_params):
                tensor.copy_(state[str(index)])
        self._average.optimization_step = num_updates
