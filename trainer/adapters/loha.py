"""LoHa: the elementwise product of two low-rank matrices (FedPara, Hyeon-Woo et al. 2021, https://arxiv.org/abs/2108.06098)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.lora_files.modules import LohaModule


class LohaChange(Change):
    """ΔW = alpha / rank * (w1_a w1_b) ∘ (w2_a w2_b); kernels are columns. Starts as LyCORIS does."""

    def __init__(self, _config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._alpha = site.alpha
        out, columns = site.weight.shape[0], site.weight[0].numel()
        self.w1_a = site.normal(out, site.rank, std=0.1)
        self.w1_b = site.normal(site.rank, columns, std=1.0)
        self.w2_a = site.zeros(out, site.rank)
        self.w2_b = site.normal(site.rank, columns, std=1.0)

    def module(self, tensors: Mapping[str, Tensor]) -> LohaModule:
        """The two products."""
        return LohaModule(
            (tensors["w1_a"], tensors["w1_b"]), (tensors["w2_a"], tensors["w2_b"]), self._alpha
        )  # fmt: skip


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, LohaChange)
