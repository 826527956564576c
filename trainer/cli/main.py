"""Entry point of `inkwash`: finds the command, runs it, and turns every error into a sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from types import ModuleType
from typing import Protocol, cast

from trainer import __version__
from trainer.cli.output import print_json
from trainer.errors import InkwashError

COMMANDS = (
    "ui",
    "demo",
    "train",
    "resume",
    "generate",
    "grid",
    "upscale",
    "stack",
    "jobs",
    "lora",
    "model",
    "dataset",
    "caption",
    "preset",
    "doctor",
)


class Command(Protocol):
    """What a module in `trainer.cli.commands` offers."""

    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


def load_command(name: str) -> Command:
    """The module of a command; only the one that is used is imported."""
    module: ModuleType = importlib.import_module(f"trainer.cli.commands.{name}")
    return cast(Command, module)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps help texts, and leaves the examples as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser with all commands, or with one of them filled in and the others by name alone."""
    parser = argparse.ArgumentParser(
        prog="inkwash",
        description="Train Stable Diffusion style and character LoRAs on your own machine.",
        epilog="`inkwash COMMAND --help` shows a command's options with examples.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"inkwash {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in COMMANDS:
        if only not in (None, name):
            commands.add_parser(name, add_help=False)
            continue
        module = load_command(name)
        sub = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.SUMMARY,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument(
            "--data-dir",
            metavar="FOLDER",
            help="Inkwash's data folder; default: $INKWASH_DATA or the system's usual place",
        )
        sub.add_argument(
            "--json",
            action="store_true",
            help="print the result as one JSON object in the last line of standard output",
        )
        sub.add_argument("--verbose", action="store_true", help="show the log on standard error, with tracebacks")
        module.add_arguments(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 2 wrong settings or usage, 130 stopped, others by kind of error."""
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    if chosen in COMMANDS:
        parser = build_parser(chosen)
    else:
        parser = build_parser()
        if chosen is None and not arguments:
            parser.print_help()
            return 2
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, stream=sys.stderr)
    try:
        return load_command(options.command).run(options)
    except InkwashError as error:
        if options.verbose:
            logging.getLogger(__name__).exception("The command failed")
        print(f"inkwash: {error}", file=sys.stderr)
        if options.json:
            print_json({"error": error.to_dict()})
        return error.exit_code
    except KeyboardInterrupt:
        print("inkwash: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
