"""LoRA that starts from the base weight's own directions: PiSSA and OLoRA.

Both papers take the start out of the base weight and train what remains beside it. Here the base stays as it is, and the start
is subtracted instead: the same function, exactly the base model at the start, and a file that is right for the original base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.lora_files.modules import LoraModule


class PrincipalChange(Change):
    """ΔW = scale * ((up0 + up)(down0 + down) - up0 down0), exported as a LoRA of twice the rank.

    `up` and `down` are trained from zero, so that weight decay pulls to the base model. A rank above what the weight has is
    lowered to that.
    """

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        shape = site.weight.shape
        matrix = site.weight.detach().float().flatten(1)
        rank = min(site.rank, *matrix.shape)
        self._scale = config.scale(site.rank, site.alpha)
        up, down = (pissa if config.init == "pissa" else olora)(matrix, rank)
        root = self._scale**0.5
        self.start_down: Tensor
        self.start_up: Tensor
        self.register_buffer("start_down", (down / root).reshape(rank, *shape[1:]))
        self.register_buffer("start_up", (up / root).reshape(-1, rank, *(1 for _ in shape[2:])))
        self.down = site.zeros(*self.start_down.shape)
        self.up = site.zeros(*self.start_up.shape)

    def module(self, tensors: Mapping[str, Tensor]) -> LoraModule:
        """The change as one product, up0 down + up (down0 + down): without the start's cancelling itself out."""
        down = torch.cat([tensors["down"], tensors["start_down"] + tensors["down"]])
        up = torch.cat([tensors["start_up"], tensors["up"]], dim=1)
        return LoraModule(down, up, self._scale * down.shape[0])


def pissa(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The strongest directions: U √S and √S Vᵀ of the singular value decomposition (https://arxiv.org/abs/2404.02948)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def olora(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first columns and rows of the QR decomposition (https://arxiv.org/abs/2406.01775)."""
    orthogonal, triangle = torch.linalg.qr(matrix)
    return orthogonal[:, :rank], triangle[:rank]


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, PrincipalChange)
