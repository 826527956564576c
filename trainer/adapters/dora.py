"""DoRA: magnitude and direction of a weight apart (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.lora_files.modules import LoraModule
from trainer.lora_files.relative import DoraModule


class DoraChange(Change):
    """W' = m V / ‖V‖ with V = W + alpha / rank * up down.

    m is trained as a difference from ‖W‖, so that weight decay pulls to the base model and not to zero.
    """

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._axis = 1 if config.dora.axis == "input" else 0
        self._alpha = site.alpha
        out, columns, *kernel = site.weight.shape
        self.down = site.kaiming(site.rank, columns, *kernel)
        self.up = site.zeros(out, site.rank, *(1 for _ in kernel))
        self.magnitude = site.zeros(site.weight.shape[self._axis])
        self.start: Tensor
        self.register_buffer("start", self._norm(site.weight.float()))

    def _norm(self, weight: Tensor) -> Tensor:
        # The epsilon of whoever applies the file, so that the start is exactly the base.
        return weight.transpose(0, self._axis).flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps

    def module(self, tensors: Mapping[str, Tensor]) -> DoraModule:
        """The magnitudes around the low-rank change."""
        sides = [1] * tensors["down"].ndim
        sides[self._axis] = -1
        magnitude = (tensors["start"] + tensors["magnitude"]).view(sides)
        return DoraModule(LoraModule(tensors["down"], tensors["up"], self._alpha), magnitude, self._axis)

    def delta_weight(self, weight: Tensor) -> Tensor:
        """W' - W, with the norm as a constant in the gradient (section 4.3)."""
        original = weight.float()
        changed = original + LoraModule(self.down, self.up, self._alpha).delta_weight(weight)
        sides = [1] * weight.ndim
        sides[self._axis] = -1
        factors = (self.start + self.magnitude) / self._norm(changed).detach()
        return changed * factors.view(sides) - original


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, DoraChange)
