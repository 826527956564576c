"""The fused backward pass: each weight is updated as soon as its gradient is there, and the gradient is let go.

So gradients never all exist at once (Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited
Resources", https://arxiv.org/abs/2306.09782, section 3.1). The numbers are those of the plain order, for nothing that an
update of one weight needs comes from another: what does is refused in the settings.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class FusedBackward:
    """Updates weights within the backward pass.

    Args:
        optimizer: whose step of a weight depends on that weight alone. Its groups' learning rates are to be set before the
            backward pass.
        deferred: whether the optimizer's kernel is told of a broken gradient on the device; else each is looked at.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, deferred: bool) -> None:
        self._optimizer = optimizer
        self._deferred = deferred
        self._squares: list[Tensor] = []
        self._is_broken = False
        for group in optimizer.param_groups:
            for weight in cast("list[nn.Parameter]", group["params"]):
                weight.register_post_accumulate_grad_hook(lambda weight, group=group: self._update(weight, group))

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = cast(Tensor, weight.grad)
        square = gradient.float().square().sum()
        self._squares.append(square)
        if self._deferred:
            optimizer: Any = self._optimizer
            optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(square)).float()
        else:
            self._is_broken = self._is_broken or not bool(torch.isfinite(square))
        if not self._is_broken:
            self._step(weight, group)
        weight.grad = None

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        # The optimizer sees one group of one weight; state is kept by weight.
        groups = self._optimizer.param_groups
        self._optimizer.param_groups = [{**group, "params": [weight]}]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups

    def finish(self) -> Tensor:
        """The length of the whole gradient since the last call, a scalar; not finite where any of it was not."""
        squares, self._squares, self._is_broken = self._squares, [], False
        return torch.stack(squares).sum().sqrt()
