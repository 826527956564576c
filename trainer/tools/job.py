"""The job of a LoRA tool: settings to figures in the run's folder, and files in the library."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from trainer.config.loading import build_tool_settings
from trainer.events import Started
from trainer.files import write_json, write_text
from trainer.jobs import JobContext
from trainer.progress import StageProgress
from trainer.tools.result import ToolContext, run_tool

FIGURES_NAME = "figures.json"
"""`lines`, `tables` and `files` of the result, for whoever shows them."""
REPORT_NAME = "report.json"
"""All figures as data, as `--json` prints them."""
PICTURE_NAME = "picture.svg"


def work(context: JobContext) -> dict[str, Any]:
    """Run the tool that the run's settings name.

    Returns: `tool`, `files` (absolute paths of what was written), `summary` (a sentence).
    Raises: InkwashError: as its message says. Cancelled: the user stopped; nothing is written.
    """
    asked = context.run.config()
    settings = build_tool_settings(str(asked.get("tool")), asked.get("settings", {}))
    context.emit(Started(pid=os.getpid()))
    context.stage("Loading the libraries")
    context.check_stop()
    places = ToolContext(context.run.data_folder(), StageProgress(context), keeps_to_data=True)
    result = run_tool(settings, places)
    folder, files = context.run.folder, [str(file) for file in result.files]
    if result.picture:
        write_text(folder / PICTURE_NAME, result.picture, "the picture")
    write_json(folder / REPORT_NAME, result.report, "the figures")
    figures = {"lines": result.lines, "tables": [asdict(table) for table in result.tables], "files": files}
    write_json(folder / FIGURES_NAME, figures, "the figures")
    # Short, because the event that ends a run is read from the tail of its file.
    return {"tool": asked["tool"], "files": files[:8], "summary": (result.lines or ("",))[0][:300]}
