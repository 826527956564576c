"""`inkwash lora TOOL`: tools for LoRA files. Each is a module in `trainer.cli.lora`."""

from __future__ import annotations

import argparse

from trainer.cli.lora import TOOLS, load_tool

SUMMARY = "look into LoRA files and work on them"
EXAMPLES = "\n".join(load_tool(name).EXAMPLES for name in TOOLS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tools, each with its own arguments."""
    tools = parser.add_subparsers(dest="tool", metavar="TOOL", required=True)
    for name in TOOLS:
        module = load_tool(name)
        sub = tools.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"examples:\n{module.EXAMPLES}",
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
        module.add_arguments(sub)


def run(arguments: argparse.Namespace) -> int:
    """Run the tool."""
    return load_tool(arguments.tool).run(arguments)
