"""`inkwash grid`: a labelled picture of all combinations of the values of up to three settings."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from trainer.cli.commands.generate import add_stack_arguments, stack_values
from trainer.cli.flags import add_flags, flag_values
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.grid import GridConfig
from trainer.config.loading import build_grid_config, read_settings
from trainer.errors import ConfigError
from trainer.files import unused_path
from trainer.grid.plan import grid_title, prepare_grid
from trainer.jobs import enqueue
from trainer.paths import data_folder
from trainer.runs import create_run

SUMMARY = "make a labelled grid of pictures over the values of any settings"
EXAMPLES = """  inkwash grid --prompt "a red house" --seed 1 --x cfg=3,5,7 --y "steps=10-30:10"
  inkwash grid --prompt "a red house" --x "lora:ink-wash=0-1:0.25" --y "sampler=Euler a,DDIM" --z seed=1-3 --out grid.png
  inkwash grid --prompt "a red house" --x "prompt s/r=red,blue,\\"dark green\\"" --y "lora=none,run:20260131-2015"
    (a word of the prompt replaced; all LoRAs that a run exported)
  inkwash grid --prompt "a red house" --lora ink-wash --lora robot:0.5 --x loras=each --y seed=1-4
    (what each LoRA of a stack does: none, each alone, all)
  inkwash grid grid.json
    (the same grid again, from the file beside it; only cells that are missing are made)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="settings of a grid (.json or .toml)")
    add_stack_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="also put the labelled picture there, and its settings beside it"
    )
    add_flags(parser, GridConfig, skip=["loras", "count"])


def run(arguments: argparse.Namespace) -> int:
    """Check the axes, make the grid, say where it is."""
    data = data_folder(arguments.data_dir)
    out = _target(arguments.out)
    values: dict[str, Any] = read_settings(arguments.file.expanduser()) if arguments.file else {}
    values |= flag_values(arguments)
    if loras := stack_values(arguments, data):
        values["loras"] = loras
    config, plan = prepare_grid(build_grid_config(values), data)
    job = create_run(data, "grid", grid_title(config), config.model_dump(mode="json"))
    printer = ProgressPrinter()
    printer.line(f"{len(plan.cells)} pictures; seed {config.seed}.")
    enqueue(job, data)
    try:
        result = follow(job, printer)
    finally:
        printer.close()
    if out is not None:
        for key, path in (("grid", out), ("recipe", out.with_suffix(".json"))):
            path.parent.mkdir(parents=True, exist_ok=True)
            result[key] = str(shutil.copyfile(result[key], unused_path(path)))
    if arguments.json:
        print_json(result)
    else:
        print(f"{result['made']} pictures made, {result['kept']} were there.\n{result['grid']}\n{result['recipe']}")
    return 0


def _target(out: Path | None) -> Path | None:
    if out is None or out.suffix.lower() == ".png":
        return out
    raise ConfigError("--out names a .png file.", where="--out", fix="Name a picture, such as grid.png.")
