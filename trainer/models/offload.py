"""Weights that stay in the computer's memory and come to the device for each use, with the next ones on their way."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.models.frozen import FrozenLayer

_AHEAD = 2


class Arrival(Protocol):
    """Tensors on their way to the device."""

    def ready(self) -> dict[str, Tensor]:
        """The tensors, once whatever is computed next may use them."""
        ...


class Carrier(Protocol):
    """Copies tensors to a device."""

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor in memory that it can be copied from."""
        ...

    def send(self, tensors: dict[str, Tensor]) -> Arrival:
        """Begin to copy."""
        ...


class _Place(NamedTuple):
    """A use of a layer. In the backward pass, where forward passes may be repeated, another follows it than in the forward pass."""

    in_backward: bool
    before: FrozenLayer | None
    layer: FrozenLayer


def _is_backward() -> bool:
    # How torch.utils.checkpoint tells it.
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportAttributeAccessIssue]


class Offloader:
    """Brings the tensors of the layers that are kept away, and those that were needed next the last time ahead of time.

    Steps are alike, so what followed a layer once (in the forward pass another than in the backward pass, and again another
    where activations are computed twice) follows it again; where it does not, it costs a wait, and nothing else. At most
    `_AHEAD` layers lie ready beside the one in use.
    """

    def __init__(self, device: torch.device, carrier: Carrier | None = None) -> None:
        self.device = device
        self._carrier = carrier or (_CudaCarrier(device) if device.type == "cuda" else _PlainCarrier(device))
        self._arriving: OrderedDict[FrozenLayer, Arrival] = OrderedDict()
        self._next: dict[_Place, _Place] = {}
        self._place: _Place | None = None

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor in the computer's memory."""
        return self._carrier.keep(tensor)

    def fetch(self, layer: FrozenLayer) -> dict[str, Tensor]:
        """The layer's packed tensors on the device."""
        before = self._place
        self._place = _Place(_is_backward(), before.layer if before else None, layer)
        if before is not None:
            self._next[before] = self._place
        arrival = self._arriving.pop(layer, None) or self._carrier.send(layer.kept())
        tensors = arrival.ready()
        self._send_ahead()
        return tensors

    def _send_ahead(self) -> None:
        place, wanted = self._place, list[FrozenLayer]()
        for _ in range(_AHEAD):
            place = None if place is None else self._next.get(place)
            if place is None:
                break
            wanted.append(place.layer)
        for layer in [layer for layer in self._arriving if layer not in wanted]:
            del self._arriving[layer]
        for layer in wanted:
            if layer not in self._arriving:
                self._arriving[layer] = self._carrier.send(layer.kept())


class _Here:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def ready(self) -> dict[str, Tensor]:
        return self._tensors


class _PlainCarrier:
    """For devices without streams of copies: what is sent ahead is merely there earlier."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta else tensor.to("cpu")

    def send(self, tensors: dict[str, Tensor]) -> Arrival:
        return _Here({name: tensor.to(self._device) for name, tensor in tensors.items()})


class _CudaCarrier:
    """Copies from pinned memory on a stream of its own, beside the computing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor.to("cpu").pin_memory()

    def send(self, tensors: dict[str, Tensor]) -> Arrival:
        with torch.cuda.stream(self._stream):
            copies = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
            event = torch.cuda.Event()
            event.record(self._stream)
        return _OnStream(copies, event)


class _OnStream:
    def __init__(self, tensors: dict[str, Tensor], event: torch.cuda.Event) -> None:
        self._tensors, self._event = tensors, event

    def ready(self) -> dict[str, Tensor]:
        current = torch.cuda.current_stream()
        current.wait_event(self._event)
        for tensor in self._tensors.values():
            # Its memory belongs to the other stream, which must not give it away while it is used on this one.
            tensor.record_stream(current)
        return self._tensors
