"""`inkwash lora inspect`: what a file is and says of itself."""

from __future__ import annotations

import argparse

from trainer.cli.output import print_json
from trainer.library import resolve_lora
from trainer.lora_files.inspect import describe_lora
from trainer.paths import data_folder

SUMMARY = "family, ranks, trigger words, base model, hashes, metadata"
EXAMPLES = """  inkwash lora inspect my-style.safetensors
  inkwash lora inspect ink-wash --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    facts = describe_lora(resolve_lora(data_folder(arguments.data_dir), arguments.file))
    if arguments.json:
        print_json(facts)
        return 0
    for key, value in facts.items():
        if key == "metadata":
            print(f"metadata: {len(value)} entries (all with --json)")
        else:
            print(f"{key.replace('_', ' ')}: {value}")
    return 0
