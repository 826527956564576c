"""The LoRA layer: W x + scale * up(down(x)) beside a frozen layer, with as few and as small operations as that takes.

What a plain implementation spends beside the matrix products: a cast of each layer's input and weights, a product with the
scale, and two sums of the size of the outputs and of the inputs. Here the weights are cast together (`CastTogether`), a
scale of 1 costs nothing, and the sums are part of the products (`addmm`), which needs a backward pass of our own. That takes
the base's product into its hands, so it is for plain linear layers and convolutions; beside any other module (quantised, with
hooks, another adapter) autograd does the same by the same formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from trainer.adapters.dropout import module_mask, rank_mask
from trainer.adapters.lora_products import conv_change, linear_change
from trainer.models.devices import without_autocast

PLAIN_TENSORS: set[type] = {nn.Parameter, Tensor}
"""Classes of weights with which a product is nothing but a product; those of quantised weights are others."""


@dataclass(frozen=True)
class Dropouts:
    """Shares, in [0, 1), of what is left out of a change at random while it is trained: its inputs, its ranks, all of it."""

    inputs: float = 0.0
    ranks: float = 0.0
    whole: float = 0.0


class LoraLayer(nn.Module):
    """Stands in the place of a frozen linear layer or convolution and adds a low-rank change to its output.

    The place may be that of another such layer, whose change is added first.

    Convolutions follow LoCon: `down` has the layer's own kernel, stride and padding, `up` is 1 x 1.

    Args:
        base: the module; of its weights nothing is assumed but what they are on plain layers.
        rank: columns of `up` and rows of `down`, > 0.
        scale: what the change is multiplied with.
        dropouts: what is left out while training.
        device: where the weights are made, float32; all zero at first.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropouts: Dropouts, device: torch.device) -> None:
        super().__init__()
        out, *rest = weight_shape(base)
        self.base = base
        self.scale = scale
        self.down = nn.Parameter(torch.zeros(rank, *rest, device=device))
        self.up = nn.Parameter(torch.zeros(out, rank, *(1 for _ in rest[1:]), device=device))
        self._dropouts = dropouts
        self._cast: tuple[Tensor, Tensor] | None = None
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: models look at its format and device."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return cast("Tensor | None", self.base.bias)

    def lend(self, cast_weights: tuple[Tensor, Tensor] | None) -> None:
        """Use these (down, up) for a while, which are the weights in another number format; None: one's own again."""
        self._cast = cast_weights

    def forward(self, inputs: Tensor, *_: object) -> Tensor:
        """The changed layer's output; further arguments (a LoRA scale of old) are for other layers."""
        base, drops = self.base, self.training and self._dropouts != Dropouts()
        down, up = self._cast or (self.down, self.up)
        if not drops and _is_plain(base, inputs):
            down, up = down.to(inputs.dtype), up.to(inputs.dtype)
            change = linear_change if isinstance(base, nn.Linear) else conv_change
            return change(cast(Any, base), inputs, down, up, self.scale)
        outputs = base(inputs)
        if drops:
            inputs = functional.dropout(inputs, self._dropouts.inputs)
        with without_autocast(inputs.device):
            inputs, down, up = (tensor.to(outputs.dtype) for tensor in (inputs, down, up))
            hidden = _hidden(base, inputs, down)
            if drops:
                hidden = self._thinned(hidden)
            return _beside(outputs, hidden, up, self.scale)

    def _thinned(self, hidden: Tensor) -> Tensor:
        dropouts = self._dropouts
        if dropouts.ranks:
            hidden = hidden * rank_mask(hidden, dropouts.ranks, -1 if self.down.ndim == 2 else 1)
        return hidden * module_mask(dropouts.whole) if dropouts.whole else hidden


def weight_shape(base: nn.Module) -> torch.Size:
    """The shape of a layer's weight, `(out, in)` or `(out, in, kernel, kernel)`, also where it is stored in another one."""
    facts = cast(Any, _innermost(base))
    if hasattr(base, "out_channels"):
        return torch.Size((facts.out_channels, facts.in_channels // facts.groups, *facts.kernel_size))
    if hasattr(base, "out_features"):
        return torch.Size((facts.out_features, facts.in_features))
    return facts.weight.shape


def _innermost(base: nn.Module) -> nn.Module:
    """The frozen layer itself, where another LoRA layer stands on it."""
    while isinstance(base, LoraLayer):
        base = base.base
    return base


def _is_plain(base: nn.Module, inputs: Tensor) -> bool:
    """Whether the base's product may be done here in its place: nothing of its own happens in its call."""
    kind = type(base)
    if kind is nn.Conv2d:
        conv = cast(nn.Conv2d, base)
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or conv.groups != 1:
            return False
    elif kind is not nn.Linear:
        return False
    # Offloading brings weights in hooks or in a forward of its own.
    if base._forward_pre_hooks or base._forward_hooks or base._backward_hooks or "forward" in base.__dict__:
        return False
    weight = cast(Tensor, base.weight)
    if type(weight) not in PLAIN_TENSORS or weight.dtype != inputs.dtype or weight.requires_grad:
        return False
    device = inputs.device.type
    if device == "meta":
        return True
    return not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) == inputs.dtype


def _hidden(base: nn.Module, inputs: Tensor, down: Tensor) -> Tensor:
    """down(inputs), with a convolution's own stride and padding."""
    if down.ndim == 2:
        return functional.linear(inputs, down)
    conv = cast(nn.Conv2d, _innermost(base))
    return functional.conv2d(inputs, down, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _beside(outputs: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """`outputs` + scale * up(hidden), differentiable; all of one number format."""
    if up.ndim == 2:
        return torch.addmm(outputs.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=scale).view(outputs.shape)
    return torch.add(outputs, functional.conv2d(hidden, up), alpha=scale)


class CastTogether:
    """Casts the weights of all layers of a model at once to the number format that it computes in.

    The copies live while the model's forward pass runs, so they can never be older than the weights. Where a forward pass is
    repeated in the backward pass (gradient checkpointing), each layer casts its own.

    Args:
        model: whose forward passes are meant.
        layers: in it.
        dtype: that it computes in.
    """

    def __init__(self, model: nn.Module, layers: Sequence[LoraLayer], dtype: torch.dtype) -> None:
        self._layers = layers
        self._dtype = dtype
        if dtype != torch.float32:
            model.register_forward_pre_hook(self._lend)
            model.register_forward_hook(self._take_back, always_call=True)

    def _lend(self, _model: nn.Module, _inputs: Any) -> None:
        weights = [weight for layer in self._layers for weight in (layer.down, layer.up)]
        if any(weight._post_accumulate_grad_hooks for weight in weights):
            # Who wants each gradient as soon as it is there would get all at the end.
            return
        copies = cast("tuple[Tensor, ...]", _Cast.apply(self._dtype, *weights))
        for layer, pair in zip(self._layers, zip(copies[::2], copies[1::2], strict=True), strict=True):
            layer.lend(pair)

    def _take_back(self, _model: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for layer in self._layers:
            layer.lend(None)


class _Cast(torch.autograd.Function):
    """Many tensors in another number format, and their gradients back, in one operation each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return _cast(weights, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        present = [gradient for gradient in gradients if gradient is not None]
        found = iter(_cast(present, ctx.dtype) if present else ())
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format) for tensor in tensors)
    torch._foreach_copy_(copies, tuple(tensors))
    return copies
