"""Changes of many layers to plain LoRA modules of a lower rank, with the figures of what was lost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from trainer.lora_files.file import LoraModule
from trainer.lora_tools.changes import Change, to_module
from trainer.lora_tools.figures import LayerFigures
from trainer.lora_tools.lowrank import LowRank
from trainer.lora_tools.truncation import Truncation, element_bytes, ranks_for_size
from trainer.progress import Progress

Changes = Mapping[str, Callable[[], Change]]
"""By common name; a change is made when it is its turn, so that one dense matrix is in memory at a time."""


@dataclass(frozen=True)
class Compressed:
    """The modules by common name, and what became of each layer."""

    modules: dict[str, LoraModule]
    layers: tuple[LayerFigures, ...]


def compress(
    changes: Changes,
    truncation: Truncation,
    alpha: float,
    dtype: torch.dtype,
    progress: Progress,
    *,
    reserved_bytes: int = 0,
    conv_rank: int | None = None,
) -> Compressed:
    """The best approximation of every change under the rule, layer by layer.

    Args:
        changes: what to approximate.
        truncation: the rule.
        alpha: of all modules, since diffusers ignores alphas that differ.
        dtype: of the result.
        progress: called for every layer.
        reserved_bytes: what a file of a given size needs besides the matrices.
        conv_rank: the most that a convolution larger than 1x1 gets.
    """
    if truncation.rule == "size_mb":
        rules = _rules_for_size(changes, truncation, dtype, progress, reserved_bytes)
    else:
        rules = dict.fromkeys(changes, truncation)
    modules: dict[str, LoraModule] = {}
    layers: list[LayerFigures] = []
    for done, (name, make) in enumerate(changes.items(), 1):
        change = make()
        rule = rules[name]
        if conv_rank and math.prod(change.shape[2:]) > 1:
            rule = replace(rule, max_rank=min(conv_rank, rule.max_rank or conv_rank))
        modules[name], figures = compress_layer(name, change, rule, alpha, dtype)
        layers.append(figures)
        progress("Cutting the layers", done, len(changes))
    return Compressed(modules, tuple(layers))


def compress_layer(
    name: str, change: Change, rule: Truncation, alpha: float, dtype: torch.dtype
) -> tuple[LoraModule, LayerFigures]:
    """One layer's best approximation under the rule."""
    svd = change.decompose(rule.values_needed)
    energy = svd.energy
    rank = rule.choose(svd.values, energy, change.flat_shape)
    error = math.sqrt(svd.lost(rank) / energy) if energy else 0.0
    figures = LayerFigures(name, change.rank, rank, math.sqrt(energy), error)
    return to_module(svd.cut(rank), change.shape, alpha, dtype), figures


def keep_factors(changes: Changes, dtype: torch.dtype, progress: Progress) -> Compressed:
    """Modules with exactly the factors that the changes have; all must have them. Their alpha is the commonest rank's."""
    # Made twice rather than kept: all factors in float32 would be several times the files.
    ranks = Counter(make().rank for make in changes.values())
    alpha = float(ranks.most_common(1)[0][0]) if ranks else 1.0
    modules: dict[str, LoraModule] = {}
    layers: list[LayerFigures] = []
    for done, (name, make) in enumerate(changes.items(), 1):
        change = make()
        if not isinstance(change.matrix, LowRank):
            raise ValueError(f"the change of {name} has no factors")
        modules[name] = to_module(change.matrix, change.shape, alpha, dtype)
        layers.append(LayerFigures(name, change.rank, change.rank, change.norm(), 0.0))
        progress("Joining the layers", done, len(changes))
    return Compressed(modules, tuple(layers))


def _rules_for_size(
    changes: Changes, truncation: Truncation, dtype: torch.dtype, progress: Progress, reserved_bytes: int
) -> dict[str, Truncation]:
    """A rank for each layer; it depends on all layers, so all are looked at first."""
    spectra: dict[str, torch.Tensor] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for done, (name, make) in enumerate(changes.items(), 1):
        change = make()
        values = change.singular_values(truncation.max_rank)
        spectra[name], shapes[name] = values[: truncation.max_rank], change.flat_shape
        progress("Measuring the layers", done, len(changes))
    budget = int(truncation.value * 1e6) - reserved_bytes
    ranks = ranks_for_size(spectra, shapes, budget, element_bytes(dtype))
    return {name: Truncation("rank", rank) for name, rank in ranks.items()}
