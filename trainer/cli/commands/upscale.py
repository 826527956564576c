"""`inkwash upscale`: enlarges pictures by an upscaling model."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from trainer.cli.flags import add_flags, flag_values
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.loading import build_upscale_config
from trainer.config.upscale import UpscaleConfig
from trainer.files import unused_path
from trainer.paths import data_folder
from trainer.upscalers import start_upscaling

SUMMARY = "enlarge pictures by an upscaling model (ESRGAN, SwinIR, …)"
EXAMPLES = """  inkwash upscale photo.jpg --upscaler 4x-UltraSharp
  inkwash upscale one.png two.png --upscaler 4x-UltraSharp --scale 2 --out larger/
    (`inkwash model list` shows the upscaling models there are)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help=UpscaleConfig.model_fields["pictures"].description
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="copy them there, too (they are in the data folder's outputs)"
    )
    add_flags(parser, UpscaleConfig, skip=["pictures"])


def run(arguments: argparse.Namespace) -> int:
    """Start the job and follow it."""
    data = data_folder(arguments.data_dir)
    job = start_upscaling(data, build_upscale_config({**flag_values(arguments), "pictures": arguments.pictures}))
    printer = ProgressPrinter(quiet=arguments.json)
    try:
        result = follow(job, printer)
    finally:
        printer.close()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        copies = [(Path(made), unused_path(arguments.out / Path(made).name)) for made in result["pictures"]]
        result["pictures"] = [str(shutil.copyfile(made, copy)) for made, copy in copies]
    if arguments.json:
        print_json(result)
    else:
        print("\n".join(result["pictures"]))
    return 0
