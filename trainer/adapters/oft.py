"""Orthogonal fine-tuning: OFT (https://arxiv.org/abs/2306.07280) and BOFT (https://arxiv.org/abs/2311.06243)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdapterConfig
from trainer.config.adapter_size import block_size, butterfly_size
from trainer.errors import ConfigError
from trainer.lora_files.relative import OftModule


class OftChange(Change):
    """Rotations of blocks of output channels, as LyCORIS trains and stores them. They start at none."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._constraint = config.oft.constraint
        self.blocks = site.zeros(*_shape(config.method, site))

    def module(self, tensors: Mapping[str, Tensor]) -> OftModule:
        """The rotations."""
        return OftModule(tensors["blocks"], self._constraint)


def _shape(method: str, site: Site) -> tuple[int, ...]:
    out = site.weight.shape[0]
    size = block_size(out, site.rank) if method == "oft" else butterfly_size(out, site.rank)
    if not size:
        raise ConfigError(
            f"No block of at most {site.rank} channels fits the {out} output channels of the layer '{site.path}'.",
            where=f"adapter.{site.path.partition('.')[0]}.rank",
            fix="Choose a higher rank: it is the largest size of a block.",
        )
    count = out // size
    # count is a power of two; log2(count) + 1 stages let every channel reach every other.
    return (count, size, size) if method == "oft" else (count.bit_length(), count, size, size)


def build(config: AdapterConfig) -> ChangedWeights:
    """The method."""
    return ChangedWeights(config, OftChange)
