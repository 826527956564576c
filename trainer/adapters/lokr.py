"""LoKr: a Kronecker product (LyCORIS, Yeh et al. 2023, https://arxiv.org/abs/2309.14859)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.config.adapter_size import factorize, is_split
from trainer.lora_files.modules import LokrModule


class LokrChange(Change):
    """ΔW = scale * kron(w1, w2); w2 is whole, or a product where the rank makes that smaller. Starts as LyCORIS does.

    The scale is alpha / rank, or 1 where w2 is whole.
    """

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._alpha = site.alpha
        out, columns, *kernel = site.weight.shape
        out1, out2 = factorize(out, config.lokr.factor)
        in1, in2 = factorize(columns, config.lokr.factor)
        self._shape = (out2, in2, *kernel)
        self.w1 = site.kaiming(out1, in1)
        if is_split(site.rank, out2, in2):
            self.w2_a = site.kaiming(out2, site.rank)
            size = in2
            for side in kernel:
                size *= side
            self.w2_b = site.zeros(site.rank, size)
        else:
            self.w2 = site.zeros(*self._shape)

    def module(self, tensors: Mapping[str, Tensor]) -> LokrModule:
        """The two factors."""
        second = (tensors["w2"],) if "w2" in tensors else (tensors["w2_a"], tensors["w2_b"])
        return LokrModule((tensors["w1"],), second, self._alpha)


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, LokrChange)
