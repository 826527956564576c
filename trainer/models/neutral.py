"""Takes out of diffusers' UNet what computes nothing: divisions of whole activations by 1."""

from __future__ import annotations

from torch import Tensor, nn

_FACTORS = ("output_scale_factor", "rescale_output_factor")


class One:
    """The number 1 as a divisor of tensors: the quotient is the tensor itself, without an operator and its gradient's."""

    def __rtruediv__(self, dividend: Tensor) -> Tensor:
        return dividend

    def __float__(self) -> float:
        return 1.0

    def __eq__(self, other: object) -> bool:
        return other == 1.0

    def __hash__(self) -> int:
        return hash(1.0)

    def __repr__(self) -> str:
        return "1.0"


def skip_neutral_divisions(model: nn.Module) -> int:
    """Let residual blocks and attentions that divide their output by 1 leave that out; returns how many do.

    They do it in each pass for models that were trained with another factor. In SD 1.5's UNet these are 54 of the forward
    pass's operators and as many of the backward pass's. The numbers stay the same to the bit.
    """
    count = 0
    for module in model.modules():
        for name in _FACTORS:
            if getattr(module, name, None) == 1.0:
                setattr(module, name, One())
                count += 1
    return count
