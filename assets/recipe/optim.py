"""Muon for matrices and convolution kernels, AdamW for everything else, on one schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly.

    Newton-Schulz, carried out on the small Gram matrix: the wide matrix itself is multiplied only at the beginning
    and at the end, which takes half the time of the usual form.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = torch.eye(len(gram))
    for _ in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised.  ``torch.optim.Muon`` takes matrices only; this one flattens convolutions as well."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).reshape(p.shape[0], -1)
                update = orthogonalise(update).to(p.dtype)
                scale = 0.2 * max(update.shape) ** 0.5  # the size of an AdamW step
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


class Optimizers:
    """Both optimizers behind one face; ``set_progress`` moves the learning rate (0 to 1 over the training)."""

    def __init__(self, modules: Iterable[nn.Module], muon_lr: float, adam_lr: float, hold: float = 0.55) -> None:
        matrices, rest = [], []
        for module in modules:
            for name, p in module.named_parameters():
                if not p.requires_grad:
                    continue
                is_matrix = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16 and "embedding" not in name
                (matrices if is_matrix else rest).append(p)
        self.params = matrices + rest
        self.parts = [Muon(matrices, muon_lr), torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0.0)]
        self.base = (muon_lr, adam_lr)
        self.hold = hold
        self.steps = 0

    def set_progress(self, progress: float) -> float:
        factor = min(1.0, max(0.0, (1.0 - progress) / (1.0 - self.hold))) * min(1.0, (self.steps + 1) / 60)
        for part, lr in zip(self.parts, self.base, strict=True):
            for group in part.param_groups:
                group["lr"] = lr * factor
        return factor

    def step(self, clip: float = 1.0) -> None:
        nn.utils.clip_grad_norm_(self.params, clip)
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        self.steps += 1

    def state_dict(self) -> dict:
        return {"steps": self.steps, "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


class Average:
    """An exponential moving average of parameters."""

    def __init__(self, params: list[Tensor], decay: float) -> None:
        self.params, self.decay, self.updates = params, decay, 0
        self.values = [p.detach().clone() for p in params]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.params], 1 - decay)

    @torch.no_grad()
    def copy_to(self) -> None:
        torch._foreach_copy_(self.params, self.values)
