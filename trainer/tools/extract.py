"""A LoRA from a fine-tuned model and its base."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from trainer.config.tools import ExtractSettings
from trainer.lora_tools.extract import ExtractOptions, extract_lora
from trainer.tools.cutting import truncation
from trainer.tools.result import ToolContext, ToolResult, cut_table, percent, ranks, written_line


def run(settings: ExtractSettings, context: ToolContext) -> ToolResult:
    """Extract. Raises: as `extract_lora`."""
    base, tuned = context.model(settings.base_model), context.model(settings.tuned_model)
    options = ExtractOptions(
        truncation=truncation(settings.cut),
        conv_rank=None if settings.conv_rank < 0 else settings.conv_rank,
        text_encoder=settings.text_encoder,
        precision=settings.precision,
    )
    target = context.target("lora", settings.name, f"{tuned.stem}-lora")
    report = extract_lora(base, tuned, target, options, overwrite=context.overwrite, progress=context.progress)
    left = f"{len(report.left_out)} changed layers left out" if report.left_out else "no changed layer left out"
    lines = (
        f"{report.layers} layers, rank {ranks(report.min_rank, report.max_rank)}, lost {percent(report.error)} "
        f"of the difference; {report.unchanged} layers are equal in both models, {left}",
        written_line(report),
    )
    return ToolResult(asdict(report), lines, (cut_table(report),), (Path(report.output),))
