"""`inkwash lora resize`: a LoRA at another rank, or another kind as a plain LoRA."""

from __future__ import annotations

import argparse

from trainer.cli.lora import options
from trainer.cli.output import ProgressPrinter
from trainer.library import resolve_lora
from trainer.paths import data_folder

SUMMARY = "a LoRA at a lower rank, by rank, energy or file size; or any kind as a plain LoRA"
EXAMPLES = """  inkwash lora resize big.safetensors --rank 16 --out small.safetensors
  inkwash lora resize big.safetensors --sv-fro 0.95 --max-rank 64 --out small.safetensors
  inkwash lora resize loha.safetensors --exact --out plain.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")
    options.add_cut(parser, exact_help="cut nothing: LoHa, LoKr and LoCon become the plain LoRA that is equal to them")
    options.add_output(parser, precisions=["auto", "fp16", "bf16", "fp32"])
    parser.add_argument(
        "--drop-differences",
        action="store_true",
        help="leave out changes of norms and biases, which not every program reads",
    )
    options.add_base(parser)


def run(arguments: argparse.Namespace) -> int:
    """Resize and print the figures."""
    from trainer.lora_tools.resize import resize_lora

    cut = options.cut_from(arguments, default_is_exact=False)
    printer = ProgressPrinter(quiet=arguments.json)
    report = resize_lora(
        resolve_lora(data_folder(arguments.data_dir), arguments.file),
        options.output_path(arguments),
        cut,
        precision=arguments.precision,
        base=options.base_path(arguments),
        drop_differences=arguments.drop_differences,
        overwrite=arguments.overwrite,
        progress=options.progress_line(printer),
    )
    printer.close()
    if not arguments.json:
        options.print_blocks(report.blocks)
    converted = ", ".join(f"{count} of kind {kind}" for kind, count in report.converted.items())
    left = "left out" if arguments.drop_differences else "kept as they are"
    lines = [
        f"{report.layers} layers, rank {options.ranks(report.min_rank, report.max_rank)}, "
        f"lost {options.percent(report.error)} of the change",
        *([f"made plain LoRA: {converted}"] if converted else []),
        *([f"{left}: {report.differences} changes of norms and biases"] if report.differences else []),
        f"{report.output}: {options.size(report.size_before)} to {options.size(report.size_bytes)} in {report.seconds:.1f} s",
    ]
    options.print_report(report, lines, as_json=arguments.json)
    return 0
