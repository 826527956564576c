"""AdaLoRA: ranks move to the layers that need them (Zhang et al. 2023, https://arxiv.org/abs/2303.10512)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from trainer.adapters.changed import Change, ChangedWeights, Site
from trainer.config.adapter import AdaloraSettings, AdapterConfig
from trainer.config.blocks import blocks_of
from trainer.lora_files.modules import AdapterModule, LoraModule

_TRAINED = ("up", "values", "down")


class AdaloraChange(Change):
    """ΔW = alpha / rank * P diag(λ) Q with the rank at the start; P is `up`, Q `down`, λ `values`.

    The buffers are the smoothed sensitivity |w ∇w| of each weight and its uncertainty (equations 9 and 10), which of the
    values are kept, and whether that is final.
    """

    def __init__(self, _config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self._scale = site.alpha / site.rank
        out, *rest = site.weight.shape
        self.up = site.normal(out, site.rank, *(1 for _ in rest[1:]), std=0.02)
        self.values = site.zeros(site.rank)
        self.down = site.normal(site.rank, *rest, std=0.02)
        for name in _TRAINED:
            weight = cast(nn.Parameter, getattr(self, name))
            for statistic in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{name}_{statistic}", torch.zeros_like(weight, requires_grad=False))
        self.kept: Tensor
        self.register_buffer("kept", torch.ones_like(self.values, requires_grad=False))
        self.fixed: Tensor
        self.register_buffer("fixed", torch.zeros_like(self.values[:1], requires_grad=False))

    def module(self, tensors: Mapping[str, Tensor]) -> LoraModule:
        """The change as a plain LoRA, λ folded into `up`."""
        up = tensors["up"] * effective_values(tensors).view(1, -1, *(1 for _ in tensors["up"].shape[2:]))
        return LoraModule(tensors["down"], up, self._scale * up.shape[1])

    @property
    def rank(self) -> int:
        """How many values are not zero."""
        return int(torch.count_nonzero(effective_values(self.named())))

    def penalty(self) -> Tensor:
        """How far the directions are from orthogonal: ‖PᵀP - I‖² + ‖QQᵀ - I‖² (equation 4)."""
        columns, rows = self.up.flatten(1), self.down.flatten(1)
        identity = torch.eye(len(self.values), device=columns.device)
        return (columns.T @ columns - identity).square().sum() + (rows @ rows.T - identity).square().sum()

    @torch.no_grad()
    def observe(self, settings: AdaloraSettings) -> None:
        """Take the gradients of a step into the statistics; not those that are infinite, whose step was skipped."""
        for name in _TRAINED:
            weight = cast(nn.Parameter, getattr(self, name))
            if weight.grad is None:
                continue
            sensitivity = cast(Tensor, getattr(self, f"{name}_sensitivity"))
            uncertainty = cast(Tensor, getattr(self, f"{name}_uncertainty"))
            now = (weight * weight.grad).abs()
            is_sound = torch.isfinite(now).all()
            smoothed = torch.lerp(now, sensitivity, settings.beta1)
            sensitivity.copy_(torch.where(is_sound, smoothed, sensitivity))
            doubt = torch.lerp((now - smoothed).abs(), uncertainty, settings.beta2)
            uncertainty.copy_(torch.where(is_sound, doubt, uncertainty))

    def scores(self) -> Tensor:
        """The importance of each triplet, `(rank,)`: that of λ plus the means over its column of P and its row of Q."""
        parts = [
            (cast(Tensor, getattr(self, f"{name}_sensitivity")) * cast(Tensor, getattr(self, f"{name}_uncertainty")))
            for name in _TRAINED
        ]
        up, values, down = parts
        return values + up.flatten(1).mean(0) + down.flatten(1).mean(1)

    @torch.no_grad()
    def mask(self) -> None:
        """Set the values that are not kept to zero."""
        self.values.mul_(self.kept)


def effective_values(tensors: Mapping[str, Tensor]) -> Tensor:
    """λ; once the ranks are fixed without those that are not kept, which an average over the steps would still hold."""
    return tensors["values"] * (1 - tensors["fixed"] * (1 - tensors["kept"]))


class AdaloraMethod(ChangedWeights):
    """AdaLoRA. The ranks of a part of the model are one budget, shared by all of its layers."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config, AdaloraChange)
        self._settings = config.adalora
        self._fixed: bool | None = None

    def _parts(self) -> list[list[AdaloraChange]]:
        parts: dict[str, list[AdaloraChange]] = {}
        for path, change in self.changes().items():
            parts.setdefault(path.partition(".")[0], []).append(cast(AdaloraChange, change))
        return list(parts.values())

    def penalty(self) -> Tensor | None:
        """The weighted mean of the layers' distances from orthogonality."""
        if not self._settings.orthogonality:
            return None
        distances = [change.penalty() for changes in self._parts() for change in changes]
        return self._settings.orthogonality * torch.stack(distances).mean()

    def after_step(self, step: int, total_steps: int) -> None:
        """Observe the gradients, and where it is due decide which triplets stay."""
        start = round(self._settings.start_share * total_steps)
        end = total_steps - round(self._settings.final_share * total_steps)
        decides = step == end or (start < step < end and (step - start) % self._settings.every == 0)
        # A run that was made shorter may be past the last decision of its new length.
        decides = decides or (step > end and not self._is_fixed())
        for changes in self._parts():
            for change in changes:
                change.observe(self._settings)
            if decides:
                total, target = self._budgets(changes)
                allocate(changes, budget(step, start, end, total, target))
            if decides or step > end:
                for change in changes:
                    change.mask()
                    change.fixed.fill_(float(step >= end))
        self._fixed = step >= end if decides else self._fixed

    @torch.no_grad()
    def at_end(self) -> None:
        """Fix the ranks of a run that was made so short that it ends where it is, before they were."""
        if not self._is_fixed():
            for changes in self._parts():
                allocate(changes, self._budgets(changes)[1])
                for change in changes:
                    change.mask()
                    change.fixed.fill_(1.0)
            self._fixed = True

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        super().load_state_dict(state)
        self._fixed = None

    def _is_fixed(self) -> bool:
        """Whether the last decision was made; read from the device once, for that waits for it."""
        if self._fixed is None:
            self._fixed = all(bool(cast(AdaloraChange, change).fixed) for change in self.changes().values())
        return self._fixed

    def _budgets(self, changes: list[AdaloraChange]) -> tuple[int, int]:
        """The ranks of a part at the start and at the end."""
        total = sum(len(change.values) for change in changes)
        return total, max(1, round(self._settings.target_share * total))

    def export_modules(self) -> dict[str, AdapterModule]:
        """Plain LoRA of the rank that each layer has now; one without any is written as rank 1 of zeros.

        A1111 skips an attention of which a layer is missing.
        """
        modules = super().export_modules()
        for path, change in self.changes().items():
            module = cast(LoraModule, modules[path])
            used = torch.nonzero(effective_values(change.named()).detach()).flatten()
            used = used if len(used) else used.new_zeros(1)
            modules[path] = LoraModule(module.down[used], module.up[:, used], module.scale * len(used))
        return modules

    def outcome(self) -> str:
        """The ranks that were left."""
        ranks = {path: cast(AdaloraChange, change).rank for path, change in self.changes().items()}
        most = max(ranks, key=lambda path: ranks[path])
        return (
            f"AdaLoRA left {sum(ranks.values())} of {sum(len(c.values) for part in self._parts() for c in part)} ranks in "
            f"{len(ranks)} layers: {min(ranks.values())} to {max(ranks.values())} each, most in {most}. "
            f"By block: {_by_block(ranks)}."
        )


def _by_block(ranks: Mapping[str, int]) -> str:
    """Ranks for people: "down_blocks.0 1 to 4, mid_block 3"."""
    blocks: dict[str, list[int]] = {}
    for path, rank in ranks.items():
        blocks.setdefault(blocks_of([path])[0], []).append(rank)
    spans = {name: sorted({min(found), max(found)}) for name, found in blocks.items()}
    return ", ".join(f"{name} {' to '.join(map(str, span))}" for name, span in spans.items())


def budget(step: int, start: int, end: int, total: int, target: int) -> int:
    """How many triplets stay after `step`: all until `start`, `target` from `end` on, a cubic fall between (equation 12)."""
    if step <= start:
        return total
    if step >= end:
        return target
    return round(target + (total - target) * (1 - (step - start) / (end - start)) ** 3)


def allocate(changes: list[AdaloraChange], count: int) -> None:
    """Keep the `count` most important triplets of all layers; equals go to the first."""
    scores = torch.cat([change.scores() for change in changes])
    order = torch.sort(scores, descending=True, stable=True).indices
    kept = torch.zeros_like(scores)
    kept[order[:count]] = 1.0
    for change, own in zip(changes, kept.split([len(change.values) for change in changes]), strict=True):
        change.kept.copy_(own)
