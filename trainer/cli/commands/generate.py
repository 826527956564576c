"""`inkwash generate`: makes pictures with a base model and a stack of LoRAs."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from trainer.cli.flags import add_flags, flag_values
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.cut import weighted_lora
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.errors import ConfigError, LoraFileError
from trainer.files import unused_path
from trainer.init_pictures import with_kept_pictures
from trainer.jobs import enqueue
from trainer.lora_lookup import with_tagged_loras
from trainer.paths import DataFolder, data_folder
from trainer.picture_texts import FORMATS
from trainer.runs import create_run
from trainer.stacks import load_stack
from trainer.upscalers import check_upscaler

SUMMARY = "make pictures with a base model and any number of LoRAs"
EXAMPLES = """  inkwash generate --prompt "a red house, on a lake" --seed 1
  inkwash generate --prompt "a red house" --lora ink-wash:0.8 --lora ~/loras/robot.safetensors:0.5 --seed 1 --out house.png
  inkwash generate --base ~/models/sd15 --prompt "a castle" --lora mine.safetensors:0.8:0.5 --count 4 --out pictures/
    (--lora FILE:UNET_WEIGHT:TEXT_ENCODER_WEIGHT)
  inkwash generate --prompt "a red house <lora:ink-wash:0.8:blocks=OUTALL> <lora:robot:0.6:steps=0-0.5>"
    (LoRAs of the library in the prompt, with block weights, and for a part of the sampling steps)
  inkwash generate --prompt "a red door" --init_image house.png --mask door.png --strength 0.8
    (only what is white in the mask is painted anew)
  inkwash generate --prompt "a castle" --hires_scale 2 --hires_strength 0.5
  inkwash generate --prompt "a castle" --hires_scale 2 --hires_upscaler 4x-UltraSharp --hires_strength 0.3
    (an upscaling model in the data folder's `upscalers`)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_stack_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="a .png, .jpg or .webp for one picture, or a folder (default: the data folder's outputs)",
    )
    add_flags(parser, GenerateConfig, skip=["loras"])


def add_stack_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a stack of LoRAs is given."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:W[:W]]",
        help="a LoRA and its weights; may stand several times",
    )
    parser.add_argument("--stack", default="", metavar="NAME", help="a saved stack of LoRAs, or the .json file of one")


def parse_lora(text: str) -> dict[str, Any]:
    """What `weighted_lora` reads, as plain data.

    Raises: ConfigError: it names no file, or a weight is too large.
    """
    try:
        return weighted_lora(text).model_dump()
    except ValueError as error:
        raise ConfigError(f"--lora: {error}.", where="--lora") from error


def lora_values(texts: list[str]) -> list[dict[str, Any]]:
    """The values of `--lora` as plain data of StackedLora; files outside of the library by their whole path."""
    return [_with_absolute_file(parse_lora(text)) for text in texts]


def stack_values(arguments: argparse.Namespace, data: DataFolder) -> list[dict[str, Any]]:
    """The stack that the arguments name, as plain data of StackedLora. Raises LoraFileError: a saved one cannot be had whole."""
    saved = load_stack(data, arguments.stack) if arguments.stack else None
    if saved is not None and saved.missing:
        raise LoraFileError(
            f"The stack '{saved.name}' has LoRAs that the library lacks: {', '.join(saved.missing)}.",
            where=arguments.stack,
            fix="Import them with the LoRAs tab, or name the others with --lora.",
        )
    stack = [lora.model_dump(mode="json") for lora in saved.loras] if saved else []
    return [*stack, *lora_values(arguments.lora)]


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, run the generation, put the pictures where the user wants them."""
    data = data_folder(arguments.data_dir)
    values = {**flag_values(arguments), "loras": stack_values(arguments, data)}
    values |= {"output_format": _format_of(arguments.out)} if arguments.out and arguments.out.suffix else {}
    config = with_kept_pictures(with_tagged_loras(build_generate_config(values), data), data)
    check_upscaler(config, data)
    if arguments.out and arguments.out.suffix and config.count > 1:
        raise ConfigError(
            "--out names one file, but several pictures were asked for.", where="--out", fix="Name a folder."
        )
    job = create_run(data, "generate", config.prompt[:40] or "pictures", config.model_dump(mode="json"))
    enqueue(job, data)
    printer = ProgressPrinter()
    try:
        result = follow(job, printer)
    finally:
        printer.close()
    if arguments.out:
        result["pictures"] = [str(path) for path in _deliver(result["pictures"], arguments.out)]
    if arguments.json:
        print_json(result)
    else:
        print("\n".join(result["pictures"]))
    return 0


def _format_of(out: Path) -> str:
    """The format that a file name asks for."""
    suffix = ".jpg" if out.suffix.lower() == ".jpeg" else out.suffix.lower()
    found = next((name for name, its in FORMATS.items() if its == suffix), None)
    if found is None:
        raise ConfigError(f"'{out.suffix}' is no format of pictures.", where="--out", fix="Use .png, .jpg or .webp.")
    return found


def _with_absolute_file(entry: dict[str, Any]) -> dict[str, Any]:
    path = Path(entry["file"]).expanduser()
    return {**entry, "file": str(path.absolute())} if path.is_file() else entry


def _deliver(pictures: list[str], out: Path) -> list[Path]:
    delivered: list[Path] = []
    for picture in map(Path, pictures):
        target = out if out.suffix else unused_path(out / picture.name)
        # A recipe too long for JPEG made it a PNG.
        target = target.with_suffix(".png") if picture.suffix == ".png" else target
        target.parent.mkdir(parents=True, exist_ok=True)
        delivered.append(Path(shutil.copyfile(picture, target)))
    return delivered
