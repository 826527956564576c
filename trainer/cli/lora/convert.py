"""`inkwash lora convert`: a file for another tool, in another layout or number format."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.output import print_json
from trainer.files import unused_path
from trainer.library import resolve_lora
from trainer.lora_files.targets import TARGETS
from trainer.paths import data_folder

SUMMARY = "write a LoRA for another tool, in another layout or number format; no change of a weight is lost"
EXAMPLES = """  inkwash lora convert style.safetensors --for comfyui
  inkwash lora convert style.safetensors --layout diffusers --dtype fp16 --out style-diffusers.safetensors"""
LAYOUTS = ("kohya", "diffusers", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")
    parser.add_argument("--for", dest="target", choices=tuple(TARGETS), default="", help="the tool that shall load it")
    parser.add_argument("--layout", choices=LAYOUTS, default="", help="default: the tool's own, else kohya")
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), default="", help="default: as in the file")
    parser.add_argument(
        "--out", metavar="FILE", help="where to (peft: a folder); default: beside FILE, under a free name"
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was written and what the tool reads of it."""
    # torch takes seconds to load: only for the command that needs it.
    from trainer.lora_files.conversion import convert_lora

    path = resolve_lora(data_folder(arguments.data_dir), arguments.file)
    layout = arguments.layout or (TARGETS[arguments.target].layout if arguments.target else "kohya")
    if arguments.out:
        out = Path(arguments.out).expanduser()
    else:
        ending = "" if layout == "peft" else ".safetensors"
        out = unused_path(path.with_name(f"{path.stem}-{arguments.target or layout}{ending}"))
    done = convert_lora(path, out, tool=arguments.target, layout=layout, dtype=arguments.dtype)
    ignored = dict(done.report.ignored) if done.report else {}
    notes = list(done.report.notes) if done.report else []
    if arguments.json:
        print_json(
            {"files": [str(f) for f in done.files], "layers": done.num_layers, "ignored": ignored, "notes": notes}
        )
        return 0
    for file in done.files:
        print(f"written and checked: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    print(f"layers: {done.num_layers}")
    for name, reason in ignored.items():
        print(f"{TARGETS[arguments.target].title} ignores {name}: {reason}")
    for note in notes:
        print(f"note: {note}")
    return 0
