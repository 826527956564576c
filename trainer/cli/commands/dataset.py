"""`inkwash dataset`: lists data sets, looks at one, and checks one as training material."""

from __future__ import annotations

import argparse

from trainer.cli import dataset_check
from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError
from trainer.paths import data_folder

SUMMARY = "list the data sets, list the pictures of one, or check one: what is wrong with it, and fix that"
EXAMPLES = """  inkwash dataset
  inkwash dataset ~/pictures/my-style
  inkwash dataset check my-style
  inkwash dataset check my-style --resolution 1024 --base my-sdxl
  inkwash dataset check my-style --fix duplicates trigger
  inkwash dataset check my-style --ignore outliers"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", nargs="?", metavar="check", help="check the data set, which is named next")
    parser.add_argument(
        "name", nargs="?", metavar="NAME|FOLDER", help="the data set; without `check` its pictures are listed"
    )
    dataset_check.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """List, or scan and report. Returns 3 when a picture cannot be used."""
    if arguments.action == "check":
        return dataset_check.run(arguments)
    if arguments.name:
        raise ConfigError(f"`inkwash dataset` does not know '{arguments.action}'.", fix="See `inkwash dataset --help`.")
    arguments.name = arguments.action
    store = DatasetStore(data_folder(arguments.data_dir))
    if not arguments.name:
        sets = store.list()
        if arguments.json:
            print_json({"datasets": [{"name": s.name, "title": s.title, "folder": str(s.folder)} for s in sets]})
        else:
            print_table(["data set", "title", "pictures"], [[s.name, s.title, str(s.num_pictures)] for s in sets])
        return 0
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
