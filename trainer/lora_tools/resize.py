"""A LoRA at another rank, and any additive kind as a plain LoRA."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import Finding, LoraFileError
from trainer.lora_files.modules import AdapterModule
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.compress import Compressed, compress, keep_factors
from trainer.lora_tools.figures import WrittenLora, written_figures
from trainer.lora_tools.inputs import Lora, matrix_names, open_lora, vector_differences
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


@dataclass(frozen=True)
class ResizeReport(WrittenLora):
    """What a resize did.

    Attributes:
        converted: how many layers of each kind other than plain LoRA became plain.
        differences: how many changes of norms and biases were kept as they are, or left out.
    """

    input: str
    rule: str
    size_before: int
    converted: dict[str, int]
    differences: int


def resize_lora(
    path: Path,
    output: Path,
    truncation: Truncation,
    *,
    precision: Precision = "auto",
    base: Path | None = None,
    drop_differences: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ResizeReport:
    """Write a file as a plain LoRA with the best approximation of every layer under a rule.

    With the rule "exact", nothing is cut: LoHa and LoKr become the plain LoRA that is exactly equal. Kinds that are not of
    low rank (full differences, DoRA, OFT, (IA)³) need a rule that cuts.

    Args:
        path: the file.
        output: where to; a `.safetensors` file.
        truncation: the rule.
        precision: of the result.
        base: the checkpoint for modules that depend on the base model's weights.
        drop_differences: leave out the changes of norms and biases, which not every tool reads.
        overwrite: whether `output` may be there already.
        progress: called for every layer; what it raises ends the work, with nothing written.

    Raises: LoraFileError: the file cannot be used, cannot become a plain LoRA under this rule, or `output` is taken.
        ConfigError: the file size cannot be reached.
    """
    require_writable(output, [path], overwrite=overwrite)
    started = time.monotonic()
    progress("Reading the file", 0, 1)
    checkpoint = Checkpoint(base) if base else None
    try:
        lora = open_lora(path, checkpoint)
        differences = vector_differences(lora)
        kept = {} if drop_differences else differences
        dtype = result_dtype(precision, lora.modules.values())
        metadata = merged_metadata(
            [lora], lora.architecture, {"tool": "resize", "cut": str(truncation), "from": path.stem}
        )
        embeddings = bundled_embeddings([lora])
        reserved = header_bytes(lora.modules, metadata, kept.values(), embeddings)
        resized = _resize(lora, truncation, dtype, reserved, progress)
    finally:
        if checkpoint:
            checkpoint.close()
    progress("Writing the file", 0, 0)
    size_before = path.stat().st_size
    write_result(output, {**resized.modules, **kept}, metadata, lora.architecture, dtype, embeddings)
    return ResizeReport(
        **written_figures(output, resized.layers, started),
        input=str(path),
        rule=str(truncation),
        size_before=size_before,
        converted=_counts([module for name, module in lora.modules.items() if name not in differences]),
        differences=len(differences),
    )


def _resize(lora: Lora, truncation: Truncation, dtype: torch.dtype, reserved: int, progress: Progress) -> Compressed:
    names = in_model_order(matrix_names(lora))
    if not names:
        raise LoraFileError("The file changes no weight matrix.", where=str(lora.file.path))
    makers = {name: lambda name=name: lora.change(name) for name in names}
    if truncation.rule != "exact":
        alpha = float(truncation.cap or lora.max_rank)
        return compress(makers, truncation, alpha, dtype, progress, reserved_bytes=reserved)
    dense = [Finding(name, lora.modules[name].kind) for name in names if exact_product(lora.modules[name]) is None]
    if dense:
        raise LoraFileError(
            f"{len(dense)} layers are not of low rank, so that no plain LoRA is exactly equal to them.",
            where=str(lora.file.path),
            fix="Cut them: give a rank, an energy share or a file size.",
            findings=dense,
        )
    return keep_factors(makers, dtype, progress)


def _counts(modules: list[AdapterModule]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for module in modules:
        if module.kind != "lora":
            counts[module.kind] = counts.get(module.kind, 0) + 1
    return counts
