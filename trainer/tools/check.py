"""What each of the usual programs would load of a file. No torch."""

from __future__ import annotations

from dataclasses import asdict

from trainer.config.tools import CheckSettings
from trainer.lora_files.targets import TARGETS, ToolReport, check_file
from trainer.tools.result import Table, ToolContext, ToolResult, plain

_SHOWN = 10
_WORDS = {"all": "yes", "part": "in part", "none": "no"}
_HEADER = ("program", "loads it", "layers ignored", "why not")


def run(settings: CheckSettings, context: ToolContext) -> ToolResult:
    """A row for each program, then what it ignores. Raises LoraFileError: it is no LoRA."""
    reports = check_file(context.lora(settings.file))
    rows = tuple(
        (TARGETS[report.tool].title, _WORDS[report.loads], str(len(report.ignored)), report.reason)
        for report in reports
    )
    lines = [line for report in reports for line in _lines(report)]
    return ToolResult({"tools": [asdict(report) for report in reports]}, tuple(lines), (Table(_HEADER, rows),))


def _lines(report: ToolReport) -> list[str]:
    title = TARGETS[report.tool].title
    lines = [f"{title}: {note}" for note in report.notes]
    if report.loads != "part":
        return lines
    ignored = list(report.ignored.items())
    lines += [f"{title} ignores {plain(name)}: {reason}" for name, reason in ignored[:_SHOWN]]
    if len(ignored) > _SHOWN:
        lines.append(f"{title} ignores {len(ignored) - _SHOWN} more (all with --json)")
    return lines
