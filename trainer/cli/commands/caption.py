"""`inkwash caption`: writes captions into a data set with a captioner, or tries one."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.captioners.job import start_captioning
from trainer.captioners.registry import CAPTIONERS
from trainer.cli.flags import add_flags, flag_values
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.caption import CaptionConfig
from trainer.config.loading import build_caption_config
from trainer.paths import data_folder

SUMMARY = "write captions into a data set, as one change that can be undone; or try a captioner on a few pictures"
EXAMPLES = """  inkwash caption my-drawings --with builtin --try 3
  inkwash caption my-drawings --with tagger --model SmilingWolf/wd-vit-tagger-v3 --wording.guide character
  inkwash caption my-drawings --with florence2 --model ~/models/florence-2 --existing overwrite --wording.guide style
  inkwash caption ~/pictures/cat --with server --server.address http://localhost:11434/v1 --model qwen3-vl
    (a folder is linked as a data set; nothing is written there)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("dataset", metavar="DATASET|FOLDER", help=CaptionConfig.model_fields["dataset"].description)
    parser.add_argument(
        "--with",
        dest="captioner",
        choices=list(CAPTIONERS),
        default="builtin",
        help=f"{CaptionConfig.model_fields['captioner'].description} (default builtin)",
    )
    parser.add_argument(
        "--try",
        dest="preview",
        type=int,
        default=0,
        metavar="N",
        help="try it on N pictures, at most 20, and change nothing",
    )
    parser.add_argument("--detach", action="store_true", help="put it in the queue and return at once")
    add_flags(parser, CaptionConfig, skip=["dataset", "captioner", "preview"])


def run(arguments: argparse.Namespace) -> int:
    """Start the job and follow it."""
    data = data_folder(arguments.data_dir)
    given = {name: getattr(arguments, name) for name in ("dataset", "captioner", "preview")}
    job = start_captioning(data, build_caption_config({**flag_values(arguments), **given}))
    printer = ProgressPrinter(quiet=arguments.json)
    if arguments.detach:
        print_json({"run": job.id}) if arguments.json else print(f"In the queue as {job.id}.")
        return 0
    try:
        result = follow(job, printer)
    finally:
        printer.close()
    print_json(result) if arguments.json else _print(result)
    return 0


def _print(result: dict[str, Any]) -> None:
    for entry in result["captions"]:
        print(f"{entry['picture']}: {entry['caption'] or '(nothing to say)'}")
    print(f"{result['summary']}.")
    if result["unchanged"]:
        print(f"Nothing was left to say of {result['unchanged']}; they stay as they are.")
