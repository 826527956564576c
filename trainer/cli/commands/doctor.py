"""`inkwash doctor`: says what was found on this machine, and how to mend what is wrong."""

from __future__ import annotations

import argparse

from trainer import doctor
from trainer.paths import data_folder

SUMMARY = "check this machine: Python, torch, device, memory, disk, extras; with the remedy for what is wrong"
EXAMPLES = """  inkwash doctor
  inkwash doctor --self-test
  inkwash doctor --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--self-test", action="store_true", help="also compute something on the device and load the embedded model"
    )


def run(arguments: argparse.Namespace) -> int:
    """Collect and print."""
    return doctor.run(json=arguments.json, data_dir=data_folder(arguments.data_dir).root, self_test=arguments.self_test)
