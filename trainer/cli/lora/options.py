"""Options and output that the tools which write files have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.cli.commands.generate import parse_lora
from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.errors import ConfigError
from trainer.library import resolve_lora
from trainer.paths import DataFolder

if TYPE_CHECKING:
    from trainer.lora_tools.figures import BlockFigures, Progress
    from trainer.lora_tools.merge import MergeInput
    from trainer.lora_tools.truncation import Truncation

_CUTS: tuple[tuple[str, type, str, str], ...] = (
    ("rank", int, "N", "cut every layer to this rank"),
    ("sv-fro", float, "SHARE", "keep this share of each layer's Frobenius norm, such as 0.95"),
    ("sv-cumulative", float, "SHARE", "keep this share of the sum of each layer's singular values"),
    ("sv-ratio", float, "X", "keep singular values of at least the largest divided by X"),
    ("size-mb", float, "MB", "keep what loses least in a file of this size"),
)


def add_cut(parser: argparse.ArgumentParser, *, exact_help: str = "") -> None:
    """Declare the rules for the rank, of which one may be given."""
    group = parser.add_argument_group("rank of the result")
    rules = group.add_mutually_exclusive_group()
    for name, kind, metavar, text in _CUTS:
        rules.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    if exact_help:
        rules.add_argument("--exact", action="store_true", help=exact_help)
    group.add_argument("--max-rank", type=int, metavar="N", help="the most that a layer gets under any rule")


def cut_from(arguments: argparse.Namespace, *, default_is_exact: bool) -> Truncation:
    """The rule that was given. Raises ConfigError where one is needed, or its value is out of range."""
    from trainer.lora_tools.truncation import Truncation

    for name, _, _, _ in _CUTS:
        rule = name.replace("-", "_")
        value = getattr(arguments, rule)
        if value is not None:
            return Truncation(rule, value, arguments.max_rank)  # pyright: ignore[reportArgumentType]
    if getattr(arguments, "exact", False) or default_is_exact:
        if arguments.max_rank is not None:
            raise ConfigError("--max-rank goes with a rule that cuts.", fix="Use --rank instead.")
        return Truncation("exact")
    raise ConfigError(
        "How far to cut is missing.", fix="Give --rank, --sv-fro, --sv-cumulative, --sv-ratio or --size-mb."
    )


def add_output(parser: argparse.ArgumentParser, what: str = "FILE", *, precisions: Sequence[str]) -> None:
    """Declare where the result goes and in which number format."""
    parser.add_argument("--out", metavar=what, required=True, help="where to write the result")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there already")
    parser.add_argument(
        "--precision", choices=precisions, default=precisions[0], help=f"number format; default: {precisions[0]}"
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Declare the base model that some kinds of modules need."""
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="the base model's .safetensors file or diffusers folder; needed for DoRA, OFT and (IA)³",
    )


def base_path(arguments: argparse.Namespace) -> Path | None:
    """The base model that was given."""
    return Path(arguments.base).expanduser() if arguments.base else None


def output_path(arguments: argparse.Namespace) -> Path:
    """Where the result goes."""
    return Path(arguments.out).expanduser().absolute()


def weighted_loras(texts: Sequence[str], data: DataFolder) -> list[MergeInput]:
    """`FILE`, `FILE:WEIGHT` or `FILE:UNET_WEIGHT:TEXT_ENCODER_WEIGHT`, each a file or a name in the library.

    Raises: LoraFileError: there is no such file. ConfigError: a weight is no number.
    """
    from trainer.lora_tools.merge import MergeInput

    inputs: list[MergeInput] = []
    for text in texts:
        # A path that exists is never cut at a colon.
        found = {"file": text} if Path(text).expanduser().is_file() else parse_lora(text)
        unet = found.get("unet_weight", 1.0)
        path = resolve_lora(data, found["file"])
        inputs.append(MergeInput(path, float(unet), float(found.get("text_encoder_weight", unet))))
    return inputs


def progress_line(printer: ProgressPrinter) -> Progress:
    """Show a tool's progress on one line."""

    def show(stage: str, done: int, total: int) -> None:
        if total:
            printer.over(f"{stage} {done}/{total}", is_last=done == total)
        else:
            printer.line(f"{stage} …")

    return show


def percent(share: float) -> str:
    """A share for people, with three digits."""
    return f"{100 * share:.3g} %"


def size(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / 1e6:.2f} MB"


def ranks(low: int, high: int) -> str:
    """One rank, or from which to which."""
    return str(low) if low == high else f"{low}–{high}"


def print_report(report: Any, lines: Sequence[str], *, as_json: bool) -> None:
    """The figures: as one JSON object, or as sentences."""
    if as_json:
        print_json(asdict(report))
    else:
        print("\n".join(lines))


def print_blocks(blocks: Sequence[BlockFigures]) -> None:
    """What became of each block."""
    print_table(
        ["block", "layers", "rank", "norm", "error"],
        [[b.block, str(b.layers), ranks(b.min_rank, b.max_rank), f"{b.norm:.4g}", percent(b.error)] for b in blocks],
    )
