"""`inkwash lora extract`: a LoRA from a fine-tuned model and its base."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.lora import options
from trainer.cli.output import ProgressPrinter

SUMMARY = "a LoRA from two checkpoints: what a fine-tuned model changed of its base"
EXAMPLES = """  inkwash lora extract base.safetensors tuned.safetensors --rank 32 --out tuned-lora.safetensors
  inkwash lora extract ~/models/sd15 tuned.safetensors --sv-fro 0.9 --max-rank 128 --conv-rank 16 --out lora.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("base_model", metavar="BASE", help="a .safetensors checkpoint or a diffusers folder")
    parser.add_argument("tuned_model", metavar="TUNED", help="the model that was fine-tuned from it")
    options.add_cut(parser)
    parser.add_argument(
        "--conv-rank", type=int, metavar="N", help="the most that a 3x3 convolution gets; 0 leaves them out"
    )
    parser.add_argument("--no-text-encoder", action="store_true", help="take the UNet's changes only")
    options.add_output(parser, precisions=["fp16", "bf16", "fp32"])


def run(arguments: argparse.Namespace) -> int:
    """Extract and print the figures."""
    from trainer.lora_tools.extract import ExtractOptions, extract_lora

    extract_options = ExtractOptions(
        truncation=options.cut_from(arguments, default_is_exact=False),
        conv_rank=arguments.conv_rank,
        text_encoder=not arguments.no_text_encoder,
        precision=arguments.precision,
    )
    printer = ProgressPrinter(quiet=arguments.json)
    report = extract_lora(
        Path(arguments.base_model).expanduser(),
        Path(arguments.tuned_model).expanduser(),
        options.output_path(arguments),
        extract_options,
        overwrite=arguments.overwrite,
        progress=options.progress_line(printer),
    )
    printer.close()
    if not arguments.json:
        options.print_blocks(report.blocks)
    left = f"{len(report.left_out)} changed layers left out" if report.left_out else "no changed layer left out"
    lines = [
        f"{report.layers} layers, rank {options.ranks(report.min_rank, report.max_rank)}, lost {options.percent(report.error)} "
        f"of the difference; {report.unchanged} layers are equal in both models, {left}",
        f"{report.output}: {options.size(report.size_bytes)} in {report.seconds:.1f} s",
    ]
    options.print_report(report, lines, as_json=arguments.json)
    return 0
