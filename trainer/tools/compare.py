"""How alike two LoRAs are."""

from __future__ import annotations

from dataclasses import asdict

from trainer.config.tools import CompareSettings
from trainer.lora_tools.compare import BlockComparison, compare_loras
from trainer.tools.result import Table, ToolContext, ToolResult

_HEADER = ("block", "layers", "cosine", "overlap out", "overlap in", "by chance", "norm first", "norm second")


def run(settings: CompareSettings, context: ToolContext) -> ToolResult:
    """Compare. Raises: as `compare_loras`."""
    report = compare_loras(
        context.lora(settings.first),
        context.lora(settings.second),
        base=context.base(settings.base),
        progress=context.progress,
    )
    alone = [
        f"only in the {which}: {len(names)} layers"
        for which, names in (("first", report.only_first), ("second", report.only_second))
        if names
    ]
    lines = (
        *alone,
        "cosine: 1 the same direction, 0 unrelated, below 0 against each other; overlap: 1 the same subspace",
    )
    rows = tuple(_row(block) for block in (*report.blocks, report.total))
    return ToolResult(asdict(report), lines, (Table(_HEADER, rows),))


def _row(block: BlockComparison) -> tuple[str, ...]:
    shares = (block.overlap_out, block.overlap_in, block.chance)
    norms = (block.norm_first, block.norm_second)
    return (
        *(block.block, str(block.layers), f"{block.cosine:+.3f}"),
        *(f"{value:.3f}" for value in shares),
        *(f"{value:.4g}" for value in norms),
    )
