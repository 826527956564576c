"""A LoRA for another program, in another layout or number format."""

from __future__ import annotations

from trainer.config.tools import ConvertSettings
from trainer.library import SUFFIX
from trainer.lora_files.conversion import convert_lora
from trainer.lora_files.targets import TARGETS
from trainer.tools.result import Table, ToolContext, ToolResult, plain
from trainer.units import size


def run(settings: ConvertSettings, context: ToolContext) -> ToolResult:
    """Convert, and say what was written and what the program reads of it. Raises: as `convert_lora`."""
    path = context.lora(settings.file)
    tool = "" if settings.target == "any" else settings.target
    layout = settings.layout if settings.layout != "auto" else (TARGETS[tool].layout if tool else "kohya")
    target = context.target("lora", settings.name, f"{path.stem}-{tool or layout}", "" if layout == "peft" else SUFFIX)
    context.progress("Writing and checking the file", 0, 0)
    dtype = "" if settings.dtype == "keep" else settings.dtype
    done = convert_lora(path, target, tool=tool, layout=layout, dtype=dtype)
    ignored = dict(done.report.ignored) if done.report else {}
    notes = list(done.report.notes) if done.report else []
    lines = (
        *(f"written and checked: {file} ({size(file.stat().st_size)})" for file in done.files),
        f"layers: {done.num_layers}",
        *(f"note: {note}" for note in notes),
    )
    rows = tuple((plain(name), reason) for name, reason in ignored.items())
    tables = (Table((f"{TARGETS[tool].title} ignores", "why"), rows),) if rows and tool else ()
    report = {
        "files": [str(file) for file in done.files],
        "layers": done.num_layers,
        "ignored": ignored,
        "notes": notes,
    }
    return ToolResult(report, lines, tables, done.files)
