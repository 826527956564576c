"""`inkwash lora compare`: how alike two LoRAs are."""

from __future__ import annotations

import argparse

from trainer.cli.lora import options
from trainer.cli.output import ProgressPrinter, print_table
from trainer.library import resolve_lora
from trainer.paths import data_folder

SUMMARY = "two LoRAs: whether they pull the same way, and whether they use the same directions, block by block"
EXAMPLES = """  inkwash lora compare step1000.safetensors step2000.safetensors
  inkwash lora compare ink-wash robot --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("first", metavar="FIRST", help="a .safetensors file, or the name of one in the library")
    parser.add_argument("second", metavar="SECOND", help="the other one")
    options.add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print the figures."""
    from trainer.lora_tools.compare import compare_loras

    data = data_folder(arguments.data_dir)
    printer = ProgressPrinter(quiet=arguments.json)
    report = compare_loras(
        resolve_lora(data, arguments.first),
        resolve_lora(data, arguments.second),
        base=options.base_path(arguments),
        progress=options.progress_line(printer),
    )
    printer.close()
    if not arguments.json:
        print_table(
            ["block", "layers", "cosine", "overlap out", "overlap in", "by chance", "norm first", "norm second"],
            [
                [
                    *(block.block, str(block.layers), f"{block.cosine:+.3f}"),
                    *(f"{value:.3f}" for value in (block.overlap_out, block.overlap_in, block.chance)),
                    *(f"{value:.4g}" for value in (block.norm_first, block.norm_second)),
                ]
                for block in (*report.blocks, report.total)
            ],
        )
    alone = [
        f"only in the {which}: {len(names)} layers"
        for which, names in (("first", report.only_first), ("second", report.only_second))
        if names
    ]
    options.print_report(
        report,
        [*alone, "cosine: 1 the same direction, 0 unrelated, below 0 against each other; overlap: 1 the same subspace"],
        as_json=arguments.json,
    )
    return 0
