"""A LoRA at another rank, or another kind as a plain LoRA."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trainer.config.tools import ResizeSettings
from trainer.lora_tools.resize import resize_lora
from trainer.tools.cutting import truncation
from trainer.tools.result import ToolContext, ToolResult, cut_table, percent, ranks, written_line


def run(settings: ResizeSettings, context: ToolContext) -> ToolResult:
    """Resize. Raises: as `resize_lora`."""
    path, rule = context.lora(settings.file), truncation(settings.cut)
    report = resize_lora(
        path,
        context.target("lora", settings.name, f"{path.stem}-{str(rule).replace(' ', '-')}"),
        rule,
        precision=settings.precision,
        base=context.base(settings.base),
        drop_differences=settings.drop_differences,
        overwrite=context.overwrite,
        progress=context.progress,
    )
    converted = ", ".join(f"{count} of kind {kind}" for kind, count in report.converted.items())
    left = "left out" if settings.drop_differences else "kept as they are"
    lines = (
        f"{report.layers} layers, rank {ranks(report.min_rank, report.max_rank)}, lost {percent(report.error)} of the change",
        *([f"made plain LoRA: {converted}"] if converted else []),
        *([f"{left}: {report.differences} changes of norms and biases"] if report.differences else []),
        written_line(report, report.size_before),
    )
    return ToolResult(asdict(report), lines, (cut_table(report),), (Path(report.output),))
