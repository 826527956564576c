"""`inkwash lora check`: what each of the usual tools would load of a file."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from trainer.cli.output import print_json, print_table
from trainer.library import resolve_lora
from trainer.lora_files.targets import TARGETS, check_file
from trainer.paths import data_folder

SUMMARY = "would each tool load this file, and which layers would it ignore"
EXAMPLES = "  inkwash lora check style.safetensors"
_SHOWN = 10
_WORDS = {"all": "yes", "part": "in part", "none": "no"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")


def run(arguments: argparse.Namespace) -> int:
    """Print a row for each tool, then what it ignores."""
    reports = check_file(resolve_lora(data_folder(arguments.data_dir), arguments.file))
    if arguments.json:
        print_json({"tools": [asdict(report) for report in reports]})
        return 0
    rows = [
        (TARGETS[report.tool].title, _WORDS[report.loads], str(len(report.ignored)), report.reason)
        for report in reports
    ]
    print_table(("tool", "loads it", "layers ignored", "why not"), rows)
    for report in reports:
        for note in report.notes:
            print(f"{TARGETS[report.tool].title}: {note}")
        if report.loads == "part":
            shown = list(report.ignored.items())
            for name, reason in shown[:_SHOWN]:
                print(f"{TARGETS[report.tool].title} ignores {_plain(name)}: {reason}")
            if len(shown) > _SHOWN:
                print(f"{TARGETS[report.tool].title} ignores {len(shown) - _SHOWN} more (all with --json)")
    return 0


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
