"""`inkwash lora merge`: several LoRAs as one file."""

from __future__ import annotations

import argparse

from trainer.cli.lora import options
from trainer.cli.output import ProgressPrinter
from trainer.paths import data_folder

SUMMARY = "several LoRAs as one: exactly, cut to a rank or file size, or with conflicts settled (TIES, DARE, pruning)"
EXAMPLES = """  inkwash lora merge ink-wash:0.8 robot:0.5 --out both.safetensors
  inkwash lora merge ink-wash robot:-0.3 --rank 32 --out both.safetensors
  inkwash lora merge a.safetensors b.safetensors --method ties --density 0.4 --size-mb 60 --out both.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument(
        "loras",
        nargs="+",
        metavar="LORA[:WEIGHT[:TEXT_ENCODER_WEIGHT]]",
        help="a file, or the name of one in the library; the result is exactly the sum of weight times change",
    )
    parser.add_argument(
        "--method",
        choices=["sum", "ties", "dare", "dare_ties", "magnitude"],
        default="sum",
        help="sum: the plain weighted sum (default); ties, dare, dare_ties, magnitude: prune first, which needs a rank",
    )
    parser.add_argument(
        "--density",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of each change that pruning keeps; default: 0.5",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of DARE's random choice; default: 0")
    options.add_cut(parser)
    options.add_output(parser, precisions=["auto", "fp16", "bf16", "fp32"])
    options.add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    """Merge and print the figures."""
    from trainer.lora_tools.merge import MergeOptions, merge_loras

    merge_options = MergeOptions(
        method=arguments.method,
        truncation=options.cut_from(arguments, default_is_exact=True),
        density=arguments.density,
        seed=arguments.seed,
        precision=arguments.precision,
        base=options.base_path(arguments),
    )
    inputs = options.weighted_loras(arguments.loras, data_folder(arguments.data_dir))
    printer = ProgressPrinter(quiet=arguments.json)
    report = merge_loras(
        inputs,
        options.output_path(arguments),
        merge_options,
        overwrite=arguments.overwrite,
        progress=options.progress_line(printer),
    )
    printer.close()
    if not arguments.json:
        options.print_blocks(report.blocks)
    lines = [
        f"{len(inputs)} LoRAs, {report.layers} layers, rank {options.ranks(report.min_rank, report.max_rank)}, "
        f"lost {options.percent(report.error)} of the change",
        f"{report.output}: {options.size(report.size_bytes)} in {report.seconds:.1f} s",
    ]
    options.print_report(report, lines, as_json=arguments.json)
    return 0
