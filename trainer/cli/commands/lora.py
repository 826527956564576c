"""`inkwash lora`: tools for LoRA files."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.output import print_json
from trainer.library import resolve_lora
from trainer.lora_files.inspect import describe_lora
from trainer.paths import data_folder

SUMMARY = "look into LoRA files"
EXAMPLES = """  inkwash lora inspect my-style.safetensors
  inkwash lora inspect ink-wash --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "tool", choices=["inspect"], help="inspect: family, ranks, trigger words, base model, hashes, metadata"
    )
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")


def run(arguments: argparse.Namespace) -> int:
    """Run the tool on the file."""
    path: Path = resolve_lora(data_folder(arguments.data_dir), arguments.file)
    facts = describe_lora(path)
    if arguments.json:
        print_json(facts)
        return 0
    for key, value in facts.items():
        if key == "metadata":
            print(f"metadata: {len(value)} entries (all with --json)")
        else:
            print(f"{key.replace('_', ' ')}: {value}")
    return 0
