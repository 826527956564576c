"""LoRAs merged into a checkpoint for good."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trainer.config.tools import BakeSettings
from trainer.library import SUFFIX
from trainer.lora_tools.bake import bake_loras
from trainer.tools.cutting import merge_inputs
from trainer.tools.result import Table, ToolContext, ToolResult, named, percent
from trainer.units import size


def run(settings: BakeSettings, context: ToolContext) -> ToolResult:
    """Bake. Raises: as `bake_loras`."""
    inputs, base = merge_inputs(settings.loras, context), context.model(settings.base_model)
    usual = "+".join([base.name.removesuffix(SUFFIX), *(item.path.stem for item in inputs)])
    report = bake_loras(
        inputs,
        base,
        context.target("model", settings.name, usual, "" if base.is_dir() else SUFFIX),
        precision=settings.precision,
        overwrite=context.overwrite,
        progress=context.progress,
    )
    rows = tuple((block.block, str(block.layers), percent(block.relative_change)) for block in report.blocks)
    lines = (
        *(f"{name}: the model has no layer {named(layers)}" for name, layers in report.unknown.items()),
        *(
            [f"learned words are not part of a checkpoint, and stay in their files: {', '.join(report.words)}"]
            if report.words
            else []
        ),
        f"{report.layers} weights changed, by {percent(report.relative_change)} of their norm",
        f"{report.output}: {size(report.size_bytes)} in {report.seconds:.1f} s",
    )
    return ToolResult(asdict(report), lines, (Table(("block", "layers", "moved by"), rows),), (Path(report.output),))
