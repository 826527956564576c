"""Frozen linear layers and convolutions whose weight is kept packed, or off the device, and made anew at each use.

Nothing but the input's shape and the layer itself is kept for the backward pass: that makes the weight once more.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional, grad

from trainer.models.packing import PACKINGS

Base = nn.Linear | nn.Conv2d


class Courier(Protocol):
    """Brings what a layer keeps elsewhere to the device."""

    device: torch.device

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor where it is to stay."""
        ...

    def fetch(self, layer: FrozenLayer) -> dict[str, Tensor]:
        """The layer's packed tensors on the device."""
        ...


class FrozenLayer(nn.Module):
    """What the two kinds of layers share. `fill` gives the layer its weight; before that it has none.

    Attributes:
        shape: of the weight.
        dtype: the number format that the weight is made in.
    """

    shape: torch.Size
    dtype: torch.dtype
    bias: nn.Parameter | None

    def _begin(self, base: Base, packing: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.shape, self.dtype = base.weight.shape, dtype
        self._packing = PACKINGS[packing]
        self._courier: Courier | None = None
        self.register_parameter("bias", cast("nn.Parameter | None", base.bias))
        self.train(base.training)

    def fill(self, weight: Tensor) -> None:
        """Pack this weight on the device that it is on, and take it over."""
        for name, tensor in self._packing.pack(weight).items():
            self.register_buffer(name, tensor, persistent=False)

    def send_away(self, courier: Courier) -> None:
        """Keep what is packed where `courier` keeps it; from now on it comes to the device for each use only."""
        self._courier = courier
        self._buffers = {name: courier.keep(tensor) for name, tensor in self.kept().items()}

    def kept(self) -> dict[str, Tensor]:
        """What is kept of the weight, where it is kept."""
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def replace(self, weight: Tensor) -> None:
        """Pack another weight of this shape and keep it in the place of the present one, wherever that is kept."""
        kept = self.kept()
        for name, tensor in self._packing.pack(weight.to(self.dtype)).items():
            kept[name].copy_(tensor)

    @property
    def is_away(self) -> bool:
        """Whether what is kept of the weight is kept off the device."""
        return self._courier is not None

    def dequantized_weight(self) -> Tensor:
        """The weight as the layer computes with it, in its number format, on the device."""
        packed = self.kept() if self._courier is None else self._courier.fetch(self)
        return self._packing.unpack(packed, self.shape, self.dtype)

    @property
    def weight(self) -> Tensor:
        """The same, under the name by which other code looks at layers."""
        return self.dequantized_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # What was sent away stays there when the model moves.
        buffers = self._buffers
        try:
            self._buffers = {} if self._courier is not None else buffers
            return super()._apply(fn, recurse)
        finally:
            self._buffers = buffers


class FrozenLinear(FrozenLayer, nn.Linear):
    """A linear layer in the place of `base`, whose weight may be on the meta device."""

    def __init__(self, base: nn.Linear, packing: str, dtype: torch.dtype) -> None:
        self._begin(base, packing, dtype)
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """W x + bias."""
        return _Linear.apply(inputs, self)


class FrozenConv2d(FrozenLayer, nn.Conv2d):
    """A convolution, filled up with zeros at its edges, in the place of `base`."""

    def __init__(self, base: nn.Conv2d, packing: str, dtype: torch.dtype) -> None:
        self._begin(base, packing, dtype)
        self.in_channels, self.out_channels, self.groups = base.in_channels, base.out_channels, base.groups
        self.kernel_size, self.stride, self.padding = base.kernel_size, base.stride, base.padding
        self.dilation, self.padding_mode = base.dilation, base.padding_mode
        self.transposed, self.output_padding = base.transposed, base.output_padding

    def forward(self, inputs: Tensor) -> Tensor:
        """W * x + bias."""
        return _Conv2d.apply(inputs, self)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return functional.linear(inputs, layer.dequantized_weight(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        weight = ctx.layer.dequantized_weight()
        return (gradients[0].to(weight.dtype) @ weight).to(ctx.dtype), None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FrozenConv2d) -> Tensor:
        ctx.layer, ctx.dtype, ctx.shape = layer, inputs.dtype, inputs.shape
        options: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return functional.conv2d(inputs, layer.dequantized_weight(), layer.bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        layer = ctx.layer
        weight = layer.dequantized_weight()
        options = (layer.stride, layer.padding, layer.dilation, layer.groups)
        found = grad.conv2d_input(ctx.shape, weight, gradients[0].to(weight.dtype), *options)
        return found.to(ctx.dtype), None


def freeze(base: Base, packing: str, dtype: torch.dtype) -> FrozenLinear | FrozenConv2d:
    """An empty layer for the place of `base`, whose bias it takes over."""
    return FrozenLinear(base, packing, dtype) if isinstance(base, nn.Linear) else FrozenConv2d(base, packing, dtype)
