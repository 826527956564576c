"""Where the LoRAs of a stack fight, and weights that settle it."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations

from trainer.config.tools import ConflictSettings
from trainer.lora_tools.conflict_picture import conflicts_svg
from trainer.lora_tools.conflicts import ConflictReport, StackedFile, Suggestion, find_conflicts
from trainer.tools.result import Table, ToolContext, ToolResult

_HEADER = ("block", "layers", "cosine", "overlap", "by chance", "on first", "on second", "verdict")


def run(settings: ConflictSettings, context: ToolContext) -> ToolResult:
    """Measure. A LoRA that has weights of blocks keeps them: others are suggested only where none has. Raises: as `find_conflicts`."""
    stack = [
        StackedFile(context.lora(x.file), x.unet_weight, x.text_encoder_weight, x.blocks, x.start, x.end)
        for x in settings.loras
        if x.is_on
    ]
    report = find_conflicts(
        stack,
        base=context.base(settings.base),
        by_block=settings.by_block and not any(item.blocks for item in stack),
        progress=context.progress,
    )
    titles = [item.path.stem for item in stack]
    picture = conflicts_svg(report.pairs, titles)
    return ToolResult(asdict(report), tuple(_lines(report, titles)), tuple(_tables(report, titles)), picture=picture)


def _lines(report: ConflictReport, titles: list[str]) -> list[str]:
    lines = list(report.warnings) or ["These LoRAs do not disturb each other."]
    for index, title in enumerate(titles):
        now = f"{report.kept[index]:.2f} times as strong as alone, its blocks {report.off[index]:.0%} off"
        then = f"; with the suggested weights {report.kept_after[index]:.2f} times, {report.off_after[index]:.0%} off"
        lines.append(f"{title}: on the stack it is {now}{then if report.suggestion else ''}")
    if report.suggestion:
        lines.append("suggestion: " + " ".join(_tag(titles[i], s) for i, s in enumerate(report.suggestion)))
    return lines


def _tag(title: str, suggestion: Suggestion) -> str:
    unet, text = suggestion.new_unet_weight, suggestion.new_text_encoder_weight
    weights = f"{unet:g}" if unet == text else f"{unet:g}:{text:g}"
    blocks = f":blocks={suggestion.new_blocks}" if suggestion.new_blocks else ""
    return f"<lora:{title}:{weights}{blocks}>"


def _tables(report: ConflictReport, titles: list[str]) -> list[Table]:
    tables: list[Table] = []
    for first, second in combinations(range(len(titles)), 2):
        rows = tuple(
            (
                *(pair.block, str(pair.layers), f"{pair.cosine:+.3f}", f"{pair.overlap:.3f}", f"{pair.chance:.3f}"),
                *(f"{pair.on_first:+.0%}", f"{pair.on_second:+.0%}", pair.verdict),
            )
            for pair in report.pairs
            if (pair.first, pair.second) == (first, second)
        )
        if rows:
            header = (f"{titles[first]} and {titles[second]}", *_HEADER[1:])
            tables.append(Table(header, rows))
    shares = tuple((row.block, *(f"{share:.0%}" for share in row.shares)) for row in report.shares)
    return [*tables, Table(("share of the change", *titles), shares)]
