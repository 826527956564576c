"""`inkwash lora TOOL`: the LoRA tools, each made from its settings class in `trainer.config.tools`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.cli.tool_flags import add_tool_arguments, tool_values
from trainer.config.loading import build_tool_settings
from trainer.config.tools import TOOLS, ToolSettings, summary
from trainer.errors import LoraFileError
from trainer.files import write_text
from trainer.paths import data_folder
from trainer.tools.result import ToolContext, ToolResult, run_tool

SUMMARY = "look into LoRA files and work on them"


def _examples(settings: type[ToolSettings]) -> str:
    return "\n".join(f"  inkwash lora {example}" for example in settings.examples)


EXAMPLES = "\n".join(_examples(settings) for settings in TOOLS.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tools, each with its own arguments."""
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    for name, settings in TOOLS.items():
        about = summary(settings)
        sub = tools.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"examples:\n{_examples(settings)}",
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        # The same options as before the tool's name; SUPPRESS, so that a default here does not undo one given there.
        sub.add_argument("--data-dir", metavar="FOLDER", default=argparse.SUPPRESS, help="Inkwash's data folder")
        sub.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print the result as one JSON object"
        )
        sub.add_argument(
            "--verbose", action="store_true", default=argparse.SUPPRESS, help="show the log, with tracebacks"
        )
        add_tool_arguments(sub, settings)


def run(arguments: argparse.Namespace) -> int:
    """Run the tool here, with its progress on one line, and print its figures."""
    settings = build_tool_settings(arguments.tool, tool_values(arguments))
    picture = _picture_path(arguments)
    out = getattr(arguments, "out", None)
    printer = ProgressPrinter(quiet=arguments.json)
    context = ToolContext(
        data_folder(arguments.data_dir),
        _progress_line(printer),
        Path(out).expanduser().absolute() if out else None,
        getattr(arguments, "overwrite", False),
    )
    try:
        result = run_tool(settings, context)
    finally:
        printer.close()
    if picture and result.picture:
        write_text(picture, result.picture, "the picture")
    if arguments.json:
        print_json(result.report)
    else:
        _print(result, picture)
    return 0


def _picture_path(arguments: argparse.Namespace) -> Path | None:
    """Where to draw, refused before any work where something is there."""
    if not getattr(arguments, "picture", None):
        return None
    path = Path(arguments.picture).expanduser().absolute()
    if path.suffix.lower() != ".svg" or path.exists():
        raise LoraFileError("The picture is a new .svg file.", where=str(path), fix="Choose another name.")
    return path


def _print(result: ToolResult, picture: Path | None) -> None:
    for table in result.tables:
        print_table(table.header, table.rows)
    for line in (*result.lines, *([f"picture: {picture}"] if picture and result.picture else [])):
        print(line)


def _progress_line(printer: ProgressPrinter) -> Callable[[str, int, int], None]:
    def show(stage: str, done: int, total: int) -> None:
        if total:
            printer.over(f"{stage} {done}/{total}", is_last=done == total)
        else:
            printer.line(f"{stage} …")

    return show
