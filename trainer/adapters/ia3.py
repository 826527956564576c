"""(IA)³: one factor a channel (Liu et al. 2022, https://arxiv.org/abs/2205.05638)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.config.adapter_size import ON_INPUT
from trainer.lora_files.relative import Ia3Module


class Ia3Change(Change):
    """Factors 1 + weight of the output channels; of the second layer of an MLP, as in the paper, of its inputs."""

    def __init__(self, _config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._on_input = site.path.endswith(ON_INPUT)
        self.factors = site.zeros(site.weight.shape[1 if self._on_input else 0])

    def module(self, tensors: Mapping[str, Tensor]) -> Ia3Module:
        """The factors."""
        return Ia3Module(tensors["factors"], self._on_input)


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, Ia3Change)
