"""The products of a LoRA layer and its plain base in one differentiable operation each, with the sums inside the products.

Both are y = W x + b + scale * up(down(x)) with W and b frozen, all of one number format. The gradients, for g = dL/dy:
dL/dup = scale * g down(x)ᵀ, dL/ddown = scale * upᵀ g xᵀ, dL/dx = Wᵀ g + downᵀ(scale * upᵀ g).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def linear_change(base: nn.Linear, inputs: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """A linear layer with its change.

    Args:
        base: the frozen layer, `(out, in)`.
        inputs: `(..., in)`.
        down: `(rank, in)`.
        up: `(out, rank)`.
        scale: of the change.
    """
    return cast(Tensor, _Linear.apply(inputs, base.weight, base.bias, down, up, scale))


def conv_change(base: nn.Conv2d, inputs: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """A convolution with its change.

    Args:
        base: the frozen layer, `(out, in, kernel, kernel)`, one group, padded with zeros.
        inputs: `(batch, in, height, width)`.
        down: `(rank, in, kernel, kernel)`.
        up: `(out, rank, 1, 1)`.
        scale: of the change.
    """
    shape = (base.stride, base.padding, base.dilation)
    return cast(Tensor, _Conv.apply(inputs, base.weight, base.bias, down, up, scale, shape))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        hidden = _scaled(functional.linear(inputs, down).flatten(0, -2), scale)
        outputs = functional.linear(inputs, weight, bias).contiguous()
        outputs.view(-1, outputs.shape[-1]).addmm_(hidden, up.t())
        ctx.save_for_backward(inputs, weight, hidden, down, up)
        ctx.scale = scale
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight, hidden, down, up = ctx.saved_tensors
        for_inputs, _, _, for_down, for_up, _ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        of_hidden = _scaled(rows @ up, ctx.scale) if for_inputs or for_down else None
        of_inputs = of_down = None
        if for_inputs and of_hidden is not None:
            of_inputs = (rows @ weight).addmm_(of_hidden, down).view(inputs.shape)
        if for_down and of_hidden is not None:
            of_down = of_hidden.t() @ inputs.flatten(0, -2)
        return of_inputs, None, None, of_down, rows.t() @ hidden if for_up else None, None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        shape: tuple[Any, Any, Any],
    ) -> Tensor:
        hidden = _scaled(functional.conv2d(inputs, down, None, *shape).contiguous(), scale)
        outputs = functional.conv2d(inputs, weight, bias, *shape).contiguous()
        outputs.flatten(2).baddbmm_(_each(up.flatten(1), inputs), hidden.flatten(2))
        ctx.save_for_backward(inputs, weight, hidden, down, up)
        ctx.scale, ctx.shape = scale, shape
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, weight, hidden, down, up = ctx.saved_tensors
        for_inputs, _, _, for_down, for_up, _, _ = ctx.needs_input_grad
        pixels = gradient.flatten(2)
        of_inputs = of_hidden = of_down = of_up = None
        if for_inputs or for_down:
            of_hidden = _scaled(torch.bmm(_each(up.flatten(1).t(), inputs), pixels), ctx.scale).view(hidden.shape)
        if for_up:
            of_up = _sum_of_products(pixels, hidden.flatten(2)).view(up.shape)
        if of_hidden is None:
            return (None,) * 4 + (of_up, None, None)
        # One number a pixel in and out: then the sum of both gradients is part of a product, too.
        is_point = down.shape[2:] == (1, 1) and ctx.shape[:2] == ((1, 1), (0, 0))
        if for_inputs:
            of_inputs, _ = _conv_gradients(gradient, inputs, weight, ctx.shape, (True, False))
            of_inputs = cast(Tensor, of_inputs).contiguous()
        if is_point:
            if of_inputs is not None:
                of_inputs.flatten(2).baddbmm_(_each(down.flatten(1).t(), inputs), of_hidden.flatten(2))
            if for_down:
                of_down = _sum_of_products(of_hidden.flatten(2), inputs.flatten(2)).view(down.shape)
        else:
            part, of_down = _conv_gradients(of_hidden, inputs, down, ctx.shape, (for_inputs, for_down))
            if of_inputs is not None and part is not None:
                of_inputs.add_(part)
        return of_inputs, None, None, of_down, of_up, None, None


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """Σ left rightᵀ over a batch, `(m, n)` of `(batch, m, p)` and `(batch, n, p)`.

    The pictures' products first, then their sum: one product over all would need the pictures side by side.
    """
    products = torch.bmm(left, right.transpose(1, 2))
    return products[0] if len(products) == 1 else products.sum(0)


def _conv_gradients(
    gradient: Tensor, inputs: Tensor, weight: Tensor, shape: tuple[Any, Any, Any], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a convolution's inputs and of its weight, each if `wanted`."""
    stride, padding, dilation = shape
    found = torch.ops.aten.convolution_backward(
        gradient, inputs, weight, None, stride, padding, dilation, False, [0, 0], 1, [*wanted, False]
    )
    return found[0], found[1]


def _each(matrix: Tensor, batch: Tensor) -> Tensor:
    """A matrix once for each picture of a batch, not copied."""
    return matrix.expand(len(batch), -1, -1)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor.mul_(scale)
