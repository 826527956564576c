"""`inkwash lora bake`: LoRAs merged into a checkpoint for good."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.lora import options
from trainer.cli.output import ProgressPrinter, print_table
from trainer.paths import data_folder

SUMMARY = "LoRAs merged into a base model's files: a checkpoint that needs no LoRA"
EXAMPLES = """  inkwash lora bake base.safetensors ink-wash:0.8 --out base-ink.safetensors
  inkwash lora bake ~/models/sd15 ink-wash:0.8 robot:0.4:0.2 --out ~/models/sd15-both"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("base_model", metavar="BASE", help="a .safetensors checkpoint or a diffusers folder")
    parser.add_argument(
        "loras",
        nargs="+",
        metavar="LORA[:WEIGHT[:TEXT_ENCODER_WEIGHT]]",
        help="a file, or the name of one in the library",
    )
    options.add_output(parser, "FILE|FOLDER", precisions=["keep", "fp16", "bf16", "fp32"])


def run(arguments: argparse.Namespace) -> int:
    """Bake and print the figures."""
    from trainer.lora_tools.bake import bake_loras

    printer = ProgressPrinter(quiet=arguments.json)
    report = bake_loras(
        options.weighted_loras(arguments.loras, data_folder(arguments.data_dir)),
        Path(arguments.base_model).expanduser(),
        options.output_path(arguments),
        precision=arguments.precision,
        overwrite=arguments.overwrite,
        progress=options.progress_line(printer),
    )
    printer.close()
    if not arguments.json:
        print_table(
            ["block", "layers", "moved by"],
            [[block.block, str(block.layers), options.percent(block.relative_change)] for block in report.blocks],
        )
    lines = [
        *(f"{name}: the model has no layer {', '.join(layers)}" for name, layers in report.unknown.items()),
        f"{report.layers} weights changed, by {options.percent(report.relative_change)} of their norm",
        f"{report.output}: {options.size(report.size_bytes)} in {report.seconds:.1f} s",
    ]
    options.print_report(report, lines, as_json=arguments.json)
    return 0
