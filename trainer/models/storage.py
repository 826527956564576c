"""How the frozen weights of a base model are kept: in which packing, and how many of them off the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models.frozen import Base, FrozenLayer, freeze
from trainer.models.offload import Offloader

# Small, or touched by every step's first and last number: packing them saves nothing that anyone would notice.
_WHOLE = ("conv_in", "conv_out", "time_embedding.", "add_embedding.", "text_projection")


@dataclass(frozen=True)
class WeightStorage:
    """What is asked for.

    Attributes:
        packing: a word of `model.quantization`.
        parts: which parts of the model are packed.
        offload_share: share of the UNet's packable weights that stay in the computer's memory, 0 to 1.
    """

    packing: str = "none"
    parts: tuple[str, ...] = ("unet",)
    offload_share: float = 0.0

    def changes(self, part: str) -> bool:
        """Whether this part is kept otherwise than torch keeps it."""
        packs = self.packing != "none" and part in self.parts
        return packs or (part == "unet" and self.offload_share > 0)

    def packing_of(self, part: str) -> str:
        """The word for a part."""
        return self.packing if part in self.parts else "none"


PLAIN = WeightStorage()


@dataclass(frozen=True)
class Placement:
    """How the weights of a model that is being loaded are kept, on which device and in which number format it computes."""

    storage: WeightStorage
    device: torch.device
    dtype: torch.dtype

    def keeper(self, model: nn.Module, part: str) -> Keeper | None:
        """What changes the layers of an empty part; None where it is kept as torch keeps it."""
        return Keeper(model, part, self) if self.storage.changes(part) else None


def packable(model: nn.Module) -> dict[str, Base]:
    """The linear layers and convolutions that can be kept otherwise, by path; norms, embeddings, first and last layers stay."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and not isinstance(module, FrozenLayer)
        and not path.startswith(_WHOLE)
        and not (isinstance(module, nn.Conv2d) and module.padding_mode != "zeros")
    }


def offloaded(layers: Mapping[str, Base], share: float) -> set[str]:
    """Paths of the layers that are kept off the device: `share` of their weights, spread evenly over the model.

    Spread, so that each has the time of those before it to arrive.
    """
    chosen: set[str] = set()
    seen = away = 0
    for path, layer in layers.items():
        size = math.prod(layer.weight.shape)
        seen += size
        if away + size / 2 <= share * seen:
            chosen.add(path)
            away += size
    return chosen


class Keeper:
    """Puts frozen layers into a model part, and fills each as its weight is read: nothing is ever whole in memory.

    Args:
        model: a part whose weights may be on the meta device.
        part: its name.
        placement: what is asked for; weights are packed on its device.
    """

    def __init__(self, model: nn.Module, part: str, placement: Placement) -> None:
        storage, device = placement.storage, placement.device
        layers = packable(model)
        away = offloaded(layers, storage.offload_share) if part == "unet" else set[str]()
        word = storage.packing_of(part)
        chosen = {path: layer for path, layer in layers.items() if word != "none" or path in away}
        self._device, self._dtype = device, placement.dtype
        self._is_packed = word != "none"
        self._courier = Offloader(device) if away else None
        self._away: set[FrozenLayer] = set()
        self._layers: dict[str, FrozenLayer] = {}
        for path, layer in chosen.items():
            self._layers[path] = frozen = freeze(layer, word, placement.dtype)
            if path in away:
                self._away.add(frozen)
            model.set_submodule(path, frozen)

    def layer_of(self, name: str) -> FrozenLayer | None:
        """The layer whose weight this name of the model's tensors is."""
        path, _, kind = name.rpartition(".")
        return self._layers.get(path) if kind == "weight" else None

    @property
    def reading_format(self) -> torch.dtype:
        """The number format to read a layer's weight in: packing starts from what the file has."""
        return torch.float32 if self._is_packed else self._dtype

    def fill(self, layer: FrozenLayer, weight: Tensor) -> None:
        """Take over a weight: packed on the device, then kept where it is to stay."""
        layer.fill(weight.to(self._device) if self._is_packed else weight)
        if layer in self._away and self._courier is not None:
            layer.send_away(self._courier)


def adopt(model: nn.Module, part: str, placement: Placement) -> None:
    """Keep the weights of a model that is in memory already as `placement` says."""
    weights = {f"{path}.weight": layer.weight for path, layer in packable(model).items()}
    keeper = placement.keeper(model, part)
    while weights:
        name, weight = weights.popitem()
        layer = None if keeper is None else keeper.layer_of(name)
        if keeper is not None and layer is not None:
            keeper.fill(layer, weight.detach())
