"""`inkwash lora metadata`: read and change what a file says of itself; the tensors stay as they are."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.output import print_json
from trainer.errors import ConfigError, LoraFileError
from trainer.library import resolve_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.rewrite import changed_metadata, rewrite_metadata
from trainer.paths import data_folder

SUMMARY = "show or change what a file says of itself, without touching its weights"
EXAMPLES = """  inkwash lora metadata style.safetensors
  inkwash lora metadata style.safetensors --set modelspec.trigger_phrase=inkstyle
  inkwash lora metadata style.safetensors --strip-private --out style-public.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="set an entry (repeatable)")
    parser.add_argument("--remove", metavar="KEY", action="append", default=[], help="remove an entry (repeatable)")
    parser.add_argument(
        "--strip-private",
        action="store_true",
        help="keep modelspec.* and what programs need; captions, data sets, times, paths and settings go",
    )
    parser.add_argument("--out", metavar="FILE", help="write a new file instead of changing this one")


def run(arguments: argparse.Namespace) -> int:
    """Show the metadata, or change them."""
    path = resolve_lora(data_folder(arguments.data_dir), arguments.file)
    metadata, _ = read_header(path)
    target = path
    if arguments.set or arguments.remove or arguments.strip_private or arguments.out:
        changed = changed_metadata(
            metadata, _pairs(arguments.set), arguments.remove, strip_private=arguments.strip_private
        )
        out = Path(arguments.out).expanduser() if arguments.out else None
        if out is not None and out.exists():
            raise LoraFileError(f"'{out.name}' exists already.", where=str(out), fix="Choose another name.")
        target = rewrite_metadata(path, changed, out)
        metadata = read_header(target)[0]
    if arguments.json:
        print_json({"file": str(target), "metadata": metadata})
        return 0
    for key, value in sorted(metadata.items()):
        text = "".join(char if char.isprintable() else " " for char in value)
        print(f"{key}: {text if len(text) <= 200 else f'{text[:200]}… ({len(text)} characters, all with --json)'}")
    if target != path or arguments.set or arguments.remove or arguments.strip_private:
        print(f"written and checked: {target}")
    return 0


def _pairs(texts: list[str]) -> dict[str, str]:
    wrong = [text for text in texts if "=" not in text or text.startswith("=")]
    if wrong:
        raise ConfigError(f"'{wrong[0]}' is not of the form KEY=VALUE.", where="--set")
    return dict(text.split("=", 1) for text in texts)
