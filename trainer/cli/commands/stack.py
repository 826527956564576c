"""`inkwash stack`: stacks of LoRAs saved under a name, as the Generate tab shows them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from trainer.cli.commands.generate import lora_values
from trainer.cli.output import print_json, print_table
from trainer.config.generate import StackedLora
from trainer.config.loading import build_generate_config
from trainer.errors import ConfigError
from trainer.lora_lookup import with_tagged_loras
from trainer.paths import DataFolder, data_folder
from trainer.stacks import SavedStack, delete_stack, import_stack, list_stacks, load_stack, save_stack, stack_file

SUMMARY = "stacks of LoRAs saved under a name"
EXAMPLES = """  inkwash stack list
  inkwash stack save evening --lora ink-wash:0.8 --lora robot:0.5
  inkwash stack save evening --tags "<lora:ink-wash:0.8:blocks=OUTALL> <lora:robot:0.5:steps=0-0.6>"
  inkwash stack show evening
  inkwash stack export evening ~/Desktop
  inkwash stack import ~/Downloads/evening.json
  inkwash generate --stack evening --prompt "a red house\""""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["list", "show", "save", "delete", "import", "export"], help="what to do")
    parser.add_argument("name", nargs="?", default="", help="the stack's name; of import: the file")
    parser.add_argument("target", nargs="?", type=Path, help="of export: the folder or new file")
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:W[:W]]", help="of save: a LoRA and its weights"
    )
    parser.add_argument("--tags", default="", metavar="TEXT", help="of save: LoRAs as a prompt has them")
    parser.add_argument("--overwrite", action="store_true", help="of save: replace the stack of that name")


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked and say what came of it."""
    data = data_folder(arguments.data_dir)
    if arguments.action == "list":
        names = list_stacks(data)
        if arguments.json:
            print_json({"stacks": names})
        else:
            print("\n".join(names) if names else "No stack is saved yet.")
        return 0
    if not arguments.name:
        raise ConfigError(f"`stack {arguments.action}` needs a name.", where="name", fix="See `inkwash stack --help`.")
    if arguments.action in ("show", "import"):
        act = load_stack if arguments.action == "show" else import_stack
        _print(act(data, Path(arguments.name) if arguments.action == "import" else arguments.name), arguments.json)
        return 0
    path = _written(data, arguments)
    if arguments.json:
        print_json({"stack": arguments.name, "path": str(path)})
    else:
        print(path)
    return 0


def _written(data: DataFolder, arguments: argparse.Namespace) -> Path:
    if arguments.action == "delete":
        return delete_stack(data, arguments.name)
    if arguments.action == "save":
        values = {"prompt": arguments.tags, "loras": lora_values(arguments.lora)}
        loras = with_tagged_loras(build_generate_config(values), data).loras
        return save_stack(data, arguments.name, loras, overwrite=arguments.overwrite)
    source = stack_file(data, arguments.name)
    if arguments.target is None:
        raise ConfigError("`stack export` needs a folder or a new file.", where="target", fix="Name one.")
    target: Path = arguments.target.expanduser().absolute()
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise ConfigError("There is a file of that name.", where=str(target), fix="Choose another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def _print(stack: SavedStack, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": stack.name,
                "loras": [lora.model_dump(mode="json") for lora in stack.loras],
                "missing": list(stack.missing),
                "notes": list(stack.notes),
            }
        )
        return
    print_table(["LoRA", "UNet", "text encoder", "blocks", "steps", "on"], [_row(lora) for lora in stack.loras])
    for line in (*stack.notes, *(f"Not in the library: {name}" for name in stack.missing)):
        print(line)


def _row(lora: StackedLora) -> list[Any]:
    steps = f"{lora.start:g}-{lora.end:g}"
    return [
        lora.file,
        f"{lora.unet_weight:g}",
        f"{lora.text_encoder_weight:g}",
        lora.blocks or "all",
        steps,
        "yes" if lora.is_on else "no",
    ]
