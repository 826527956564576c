"""Where the LoRAs of a stack fight, and weights that settle it."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations

from trainer.config.tools import ConflictSettings
from trainer.lora_tools.conflicts import ConflictReport, StackedFile, Suggestion, find_conflicts
from trainer.tools.result import Table, ToolContext, ToolResult

_HEADER = ("block", "layers", "cosine", "overlap", "by chance", "on first", "on second", "verdict")


def run(settings: ConflictSettings, context: ToolContext) -> ToolResult:
    """Measure. Raises: as `find_conflicts`."""
    stack = [StackedFile(context.lora(x.file), x.unet_weight, x.text_encoder_weight) for x in settings.loras]
    report = find_conflicts(stack, base=context.base(settings.base), progress=context.progress)
    titles = [item.path.stem for item in stack]
    return ToolResult(asdict(report), tuple(_lines(report, titles)), tuple(_tables(report, titles)))


def _lines(report: ConflictReport, titles: list[str]) -> list[str]:
    lines = list(report.warnings) or ["These LoRAs do not disturb each other."]
    after = report.kept_after if report.suggestion else ()
    for index, (title, kept) in enumerate(zip(titles, report.kept, strict=True)):
        then = f"; with the suggested weights {after[index]:.2f}" if after else ""
        lines.append(f"{title}: on the stack it is {kept:.2f} times as strong as alone{then}")
    if report.suggestion:
        lines.append("suggestion: " + " ".join(_tag(titles[i], s) for i, s in enumerate(report.suggestion)))
    return lines


def _tag(title: str, suggestion: Suggestion) -> str:
    unet, text = suggestion.new_unet_weight, suggestion.new_text_encoder_weight
    return f"<lora:{title}:{unet:g}>" if unet == text else f"<lora:{title}:{unet:g}:{text:g}>"


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
