"""Several LoRAs as one file: exactly, cut to a rank, or with the conflicts between them settled (TIES, DARE, pruning).

A weight w gives exactly w times the change of the file, also below 0: it scales one factor, not both.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.errors import ConfigError, Finding, LoraFileError
from trainer.lora_files.modules import AdapterModule, DifferenceModule
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.combine import agreeing_mean, drop_randomly, trim, weighted_sum
from trainer.lora_tools.compress import Compressed, compress, keep_factors
from trainer.lora_tools.figures import WrittenLora, written_figures
from trainer.lora_tools.inputs import Lora, matrix_names, open_lora, require_same_architecture, vector_differences
from trainer.lora_tools.lowrank import LowRank, concatenate
from trainer.lora_tools.names import in_model_order
from trainer.lora_tools.outputs import (
    Precision,
    bundled_embeddings,
    header_bytes,
    merged_metadata,
    require_writable,
    result_dtype,
    write_result,
)
from trainer.lora_tools.products import exact_product
from trainer.lora_tools.truncation import Truncation
from trainer.progress import Progress, no_progress

Method = Literal["sum", "ties", "dare", "dare_ties", "magnitude"]
METHODS: dict[Method, str] = {
    "sum": "the weighted sum of the changes",
    "ties": "trim small changes, elect a sign for each number, average those that agree",
    "dare": "drop changes at random, scale up the rest, sum",
    "dare_ties": "drop at random, then settle signs as TIES does",
    "magnitude": "keep each LoRA's largest changes, sum",
}


@dataclass(frozen=True)
class MergeInput:
    """A file and how strongly it counts; `text_encoder_weight` None is the same as `weight`.

    Raises: ConfigError: a weight is NaN or infinite.
    """

    path: Path
    weight: float = 1.0
    text_encoder_weight: float | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(weight) for weight in (self.weight, self.text_encoder_weight or 0.0)):
            raise ConfigError(f"The weight of '{self.path.stem}' is not a finite number.")

    def weight_for(self, name: str) -> float:
        """The weight for a layer."""
        if self.text_encoder_weight is not None and name.startswith("lora_te"):
            return self.text_encoder_weight
        return self.weight


@dataclass(frozen=True)
class MergeOptions:
    """How to merge.

    Attributes:
        method: a key of METHODS.
        truncation: the rank of the result; rule "exact" joins the factors, which only "sum" can.
        density: share of each change that pruning methods keep.
        seed: of DARE's random choice.
        precision: of the result.
        base: the checkpoint for modules that depend on the base model's weights.

    Raises: ConfigError: the settings do not go together.
    """

    method: Method = "sum"
    truncation: Truncation = field(default_factory=lambda: Truncation("exact"))
    density: float = 0.5
    seed: int = 0
    precision: Precision = "auto"
    base: Path | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"There is no method '{self.method}': {', '.join(METHODS)}.")
        if not 0 < self.density <= 1:
            raise ConfigError(f"The density is a share above 0 and up to 1, not {self.density:g}.")
        if self.method != "sum" and self.truncation.rule == "exact":
            raise ConfigError(
                f"What {self.method} gives is not of low rank, so it needs to be cut.",
                fix="Say how: a rank, an energy share or a file size.",
            )


@dataclass(frozen=True)
class MergeReport(WrittenLora):
    """What a merge did. `inputs` are the files with their weights for the UNet and for the text encoders."""

    inputs: tuple[tuple[str, float, float], ...]
    method: str


def merge_loras(
    inputs: Sequence[MergeInput],
    output: Path,
    options: MergeOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> MergeReport:
    """Merge files into one plain LoRA.

    Args:
        inputs: one or more files with their weights.
        output: where to; a `.safetensors` file.
        options: how; an exact sum by default.
        overwrite: whether `output` may be there already.
        progress: called for every layer; what it raises ends the merge, with nothing written.

    Raises: LoraFileError: a file cannot be used, they are for different models, or `output` is taken.
        ConfigError: the settings do not go together, or a file size cannot be reached.
    """
    options = options or MergeOptions()
    if not inputs:
        raise ConfigError("There is nothing to merge.", fix="Give at least one LoRA file.")
    paths = [item.path for item in inputs]
    require_writable(output, paths, overwrite=overwrite)
    started = time.monotonic()
    base = Checkpoint(options.base) if options.base else None
    try:
        loras = [_open(path, base, progress, index, len(paths)) for index, path in enumerate(paths)]
        architecture = require_same_architecture(loras)
        dtype = result_dtype(options.precision, (module for lora in loras for module in lora.modules.values()))
        metadata = merged_metadata(loras, architecture, _recipe(inputs, options))
        differences = _merged_differences(loras, inputs, dtype)
        embeddings = bundled_embeddings(loras)
        names = {name for lora in loras for name in lora.modules}
        reserved = header_bytes(names, metadata, differences.values(), embeddings)
        merged = _merge(loras, inputs, options, dtype, reserved, progress)
    finally:
        if base:
            base.close()
    progress("Writing the file", 0, 0)
    write_result(output, {**merged.modules, **differences}, metadata, architecture, dtype, embeddings)
    return MergeReport(
        **written_figures(output, merged.layers, started),
        inputs=tuple((str(item.path), item.weight_for("lora_unet"), item.weight_for("lora_te")) for item in inputs),
        method=options.method,
    )


def _recipe(inputs: Sequence[MergeInput], options: MergeOptions) -> dict[str, Any]:
    """How the file was made, for its metadata."""
    pruning = {"density": options.density, "seed": options.seed} if options.method != "sum" else {}
    return {
        "tool": "merge",
        "method": options.method,
        "cut": str(options.truncation),
        "from": [
            {
                "name": item.path.stem,
                "weight": item.weight_for("lora_unet"),
                "text_encoder_weight": item.weight_for("lora_te"),
            }
            for item in inputs
        ],
        **pruning,
    }


def _open(path: Path, base: Checkpoint | None, progress: Progress, index: int, total: int) -> Lora:
    progress("Reading the files", index, total)
    return open_lora(path, base)


def _merge(
    loras: Sequence[Lora],
    inputs: Sequence[MergeInput],
    options: MergeOptions,
    dtype: torch.dtype,
    reserved_bytes: int,
    progress: Progress,
) -> Compressed:
    names = in_model_order(dict.fromkeys(name for lora in loras for name in matrix_names(lora)))
    makers: dict[str, Callable[[], Change]] = {}
    for name in names:
        parts = [
            (index, lora, item.weight_for(name))
            for index, (lora, item) in enumerate(zip(loras, inputs, strict=True))
            if name in lora.modules
        ]
        makers[name] = lambda name=name, parts=parts: _merged_change(name, parts, options)
    if options.truncation.rule == "exact":
        _require_factors(loras)
        return keep_factors(makers, dtype, progress)
    alpha = float(options.truncation.cap or sum(lora.max_rank for lora in loras))
    return compress(makers, options.truncation, alpha, dtype, progress, reserved_bytes=reserved_bytes)


def _merged_change(name: str, parts: Sequence[tuple[int, Lora, float]], options: MergeOptions) -> Change:
    """The merged change of one layer."""
    changes = [lora.change(name) for _, lora, _ in parts]
    shapes = {change.shape for change in changes}
    if len({change.flat_shape for change in changes}) > 1:
        raise LoraFileError(
            f"The LoRAs change '{name}' in different sizes: they are for different base models.",
            findings=[
                Finding(str(lora.file.path), f"{change.shape}")
                for (_, lora, _), change in zip(parts, changes, strict=True)
            ],
        )
    # A 1x1 convolution that some tool wrote as a linear layer is one all the same.
    shape = max(shapes, key=len)
    weights = [weight for _, _, weight in parts]
    if options.method == "sum":
        factors = [(change.matrix, weight) for change, weight in zip(changes, weights, strict=True)]
        low = [(matrix, weight) for matrix, weight in factors if isinstance(matrix, LowRank)]
        if len(low) == len(factors):
            return Change(concatenate(low), shape)
        return Change(weighted_sum([change.dense() for change in changes], weights), shape)
    seeds = [f"{options.seed}/{index}/{name}" for index, _, _ in parts]
    pruned = [_pruned(change.dense(), options, seed) for change, seed in zip(changes, seeds, strict=True)]
    combine = agreeing_mean if options.method in ("ties", "dare_ties") else weighted_sum
    return Change(combine(pruned, weights), shape)


def _pruned(change: Tensor, options: MergeOptions, seed: str) -> Tensor:
    if options.method in ("ties", "magnitude"):
        return trim(change, options.density)
    # By layer and file, so that the order of layers does not matter and two files drop different numbers.
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return drop_randomly(change, options.density, generator)


def _require_factors(loras: Sequence[Lora]) -> None:
    dense = [
        Finding(name, f"{lora.modules[name].kind} in {lora.file.path.name}")
        for lora in loras
        for name in matrix_names(lora)
        if exact_product(lora.modules[name]) is None
    ]
    if dense:
        raise LoraFileError(
            f"{len(dense)} layers are not of low rank, so that no plain LoRA is exactly their sum.",
            fix="Cut the result: give a rank, an energy share or a file size.",
            findings=dense,
        )


def _merged_differences(
    loras: Sequence[Lora], inputs: Sequence[MergeInput], dtype: torch.dtype
) -> dict[str, AdapterModule]:
    """Sums of the changes of norms and biases, which every method adds up plainly.

    Raises: LoraFileError: two files change one in different sizes.
    """
    merged: dict[str, AdapterModule] = {}
    parts: dict[str, list[tuple[DifferenceModule, float]]] = {}
    for lora, item in zip(loras, inputs, strict=True):
        for name, module in vector_differences(lora).items():
            parts.setdefault(name, []).append((module, item.weight_for(name)))
    for name, found in parts.items():
        if len({tuple(module.difference.shape) for module, _ in found}) > 1:
            raise LoraFileError(f"The LoRAs change '{name}' in different sizes: they are for different base models.")
        total = weighted_sum([module.difference.float() for module, _ in found], [weight for _, weight in found])
        merged[name] = DifferenceModule(total.to(dtype), found[0][0].part)
    return merged
