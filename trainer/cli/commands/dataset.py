"""`inkwash dataset`: lists data sets, checks one, and what else can be done with them."""

from __future__ import annotations

import argparse
import importlib

from trainer.cli import (
    dataset_bringing,
    dataset_captions,
    dataset_check,
    dataset_prepare,
    dataset_turns,
    dataset_versions,
)
from trainer.cli.dataset_options import refuse_foreign
from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError
from trainer.paths import data_folder

SUMMARY = (
    "list the data sets, check, prepare, import or fetch one, edit its captions, compare with a run, restore a run's"
)
EXAMPLES = """  inkwash dataset
  inkwash dataset ~/pictures/my-style
  inkwash dataset check my-style
  inkwash dataset check my-style --resolution 1024 --base my-sdxl
  inkwash dataset check my-style --fix duplicates trigger
  inkwash dataset check my-style --ignore outliers
  inkwash dataset preview my-style --preset sd15-style        (what is trained of each picture, and what is lost)
  inkwash dataset preview my-style --resolution 768 --pictures ./as-trained
  inkwash dataset turns my-style --turn cat.png 90            (clockwise, with its crop and mask)
  inkwash dataset crops my-style --crop cat.png 0 120 640 760
  inkwash dataset crops my-style --propose detail --accept
  inkwash dataset masks my-style --model ~/models/u2net.onnx
  inkwash dataset masks my-style --fill white                 (background removal; --fill none, or --undo)
  inkwash dataset preview my-style --flips                    (may the pictures be shown mirrored?)
  inkwash dataset tags robot                        (how often each tag stands in the captions)
  inkwash dataset tags robot rename "grey, gray" silver --apply
  inkwash dataset tags robot remove "watermark" --having "city" --apply
  inkwash dataset replace robot "a picture of " "" --apply
  inkwash dataset replace robot "(\\w+) hair" "hair of \\1" --regex
  inkwash dataset export-captions robot             (.txt files beside the pictures)
  inkwash dataset import-captions robot             (let the files beside the pictures say the captions again)
  inkwash dataset import "My ink" ~/pictures/ink more.zip      (kohya's 10_name folders become a set each)
  inkwash dataset import "My ink" ~/new-ones --add             (into a data set that is there)
  inkwash dataset fetch "My ink" --list addresses.txt
  inkwash dataset diff 20260131-2015                (what has changed since that run)
  inkwash dataset restore 20260131-2015             (a change that can be undone in the Dataset tab)
  inkwash dataset restore 20260131-2015 --new "As it was"
  inkwash dataset ./diff                            (a data set or folder that is named like an action)"""
ACTIONS = {
    "check": "trainer.cli.dataset_check:run",
    "preview": "trainer.cli.dataset_prepare:preview",
    "turns": "trainer.cli.dataset_turns:turns",
    "crops": "trainer.cli.dataset_prepare:crops",
    "masks": "trainer.cli.dataset_prepare:masks",
    "tags": "trainer.cli.dataset_captions:tags",
    "replace": "trainer.cli.dataset_captions:replace",
    "export-captions": "trainer.cli.dataset_captions:export",
    "import-captions": "trainer.cli.dataset_captions:take",
    "import": "trainer.cli.dataset_bringing:bring",
    "fetch": "trainer.cli.dataset_bringing:fetch",
    "diff": "trainer.cli.dataset_versions:diff",
    "restore": "trainer.cli.dataset_versions:restore",
}
"""What can stand in the place of a data set's name: `module:function`, called with the arguments."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME|FOLDER|ACTION",
        help=f"the data set whose pictures are listed; or what to do: {', '.join(ACTIONS)}",
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help="check, preview, turns, crops, masks, export-captions, import-captions: the data set; diff, restore: the run; import, "
        "fetch: the name, then paths or addresses; tags: the data set, then add, front, remove, rename, first, sort or unique, and its "
        "tags; replace: the data set, what to look for, what to put in its place",
    )
    dataset_bringing.add_arguments(parser)
    dataset_versions.add_arguments(parser)
    dataset_check.add_arguments(parser)
    dataset_prepare.add_arguments(parser)
    dataset_turns.add_arguments(parser)
    dataset_captions.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do an action, or list, or scan and report. Returns 3 when a picture cannot be used."""
    if arguments.name in ACTIONS:
        module, _, function = ACTIONS[arguments.name].partition(":")
        refuse_foreign(arguments)
        return getattr(importlib.import_module(module), function)(arguments)
    if arguments.what:
        raise ConfigError(
            f"There is no action '{arguments.name}'.",
            fix=f"The actions are {', '.join(ACTIONS)}; or name one data set.",
        )
    refuse_foreign(arguments)
    store = DatasetStore(data_folder(arguments.data_dir))
    return _check(store, arguments) if arguments.name else _list(store, as_json=arguments.json)


def _list(store: DatasetStore, *, as_json: bool) -> int:
    sets = store.list()
    if as_json:
        print_json(
            {
                "datasets": [
                    {"name": s.name, "title": s.title, "folder": str(s.folder), "problem": s.problem} for s in sets
                ]
            }
        )
    else:
        rows = [[s.name, s.title, "damaged" if s.problem else str(s.num_pictures)] for s in sets]
        print_table(["data set", "title", "pictures"], rows)
    return 0


def _check(store: DatasetStore, arguments: argparse.Namespace) -> int:
    printer = ProgressPrinter(quiet=arguments.json)
    scan = store.scan(arguments.name, progress=lambda done, total: printer.over(f"checking {done}/{total}"))
    printer.close()
    rows = [
        {
            "picture": picture.name,
            "size": f"{picture.width} x {picture.height}",
            "caption": picture.caption or "",
            "problems": [problem.message for problem in picture.problems],
        }
        for picture in scan.pictures
    ]
    if arguments.json:
        print_json({"pictures": rows, "problems": [problem.message for problem in scan.problems]})
    else:
        print_table(
            ["picture", "size", "problems"], [[r["picture"], r["size"], "; ".join(r["problems"])] for r in rows]
        )
        print("\n".join(problem.message for problem in scan.problems))
    is_bad = any(problem.level == "error" for picture in scan.pictures for problem in picture.problems)
    return 3 if is_bad or not scan.pictures else 0
