"""Several LoRAs as one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trainer.config.tools import MergeSettings
from trainer.lora_tools.merge import MergeOptions, merge_loras
from trainer.tools.cutting import merge_inputs, truncation
from trainer.tools.result import ToolContext, ToolResult, cut_table, percent, ranks, written_line


def run(settings: MergeSettings, context: ToolContext) -> ToolResult:
    """Merge. Raises: as `merge_loras`."""
    inputs = merge_inputs(settings.loras, context)
    options = MergeOptions(
        method=settings.method,
        truncation=truncation(settings.cut),
        density=settings.density,
        seed=settings.seed,
        precision=settings.precision,
        base=context.base(settings.base),
    )
    target = context.target("lora", settings.name, "+".join(item.path.stem for item in inputs))
    report = merge_loras(inputs, target, options, overwrite=context.overwrite, progress=context.progress)
    lines = (
        f"{len(inputs)} LoRAs, {report.layers} layers, rank {ranks(report.min_rank, report.max_rank)}, "
        f"lost {percent(report.error)} of the change",
        written_line(report),
    )
    return ToolResult(asdict(report), lines, (cut_table(report),), (Path(report.output),))
