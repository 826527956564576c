"""`inkwash dataset import` and `fetch`: pictures of one's own into data sets, from this machine or from given addresses."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.dataset.bringing import bring_in
from trainer.dataset.fetch_job import start_fetch
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError
from trainer.paths import data_folder
from trainer.progress import StageProgress


def bring(arguments: argparse.Namespace) -> int:
    """Make data sets of files, folders and zips. Returns 0."""
    if len(arguments.what) < 2:
        raise ConfigError("Give a name and what to import.", fix="`inkwash dataset import NAME FILE|FOLDER|ZIP…`")
    name, *paths = arguments.what
    data = data_folder(arguments.data_dir)
    sources = [Path(path).expanduser() for path in paths]
    with ProgressPrinter(quiet=arguments.json) as printer:
        brought = bring_in(DatasetStore(data), data, name, sources, progress=StageProgress(printer))
    if arguments.json:
        sets = [{"name": info.name, "pictures": info.num_pictures, **info.concept()} for info in brought.sets]
        print_json({"datasets": sets, "left_out": [str(finding) for finding in brought.left_out]})
        return 0
    for info, report in zip(brought.sets, brought.reports, strict=True):
        role = " (class pictures)" if info.role else f" (repeats {info.repeats})" if info.repeats > 1 else ""
        print(f"{info.name}{role}: {report.summary()}")
    print("\n".join(f"left out: {finding}" for finding in brought.left_out))
    return 0


def fetch(arguments: argparse.Namespace) -> int:
    """Fetch pictures into a data set. Returns 3 where some could not be had."""
    name, *addresses = arguments.what or [""]
    if arguments.list:
        try:
            lines = Path(arguments.list).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as failure:
            raise ConfigError("The list of addresses cannot be read.", where=arguments.list) from failure
        addresses += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not name or not addresses:
        raise ConfigError(
            "Give a data set and addresses.", fix="`inkwash dataset fetch NAME ADDRESS…`, or --list FILE."
        )
    run = start_fetch(data_folder(arguments.data_dir), name, addresses, allow_private=arguments.allow_private)
    with ProgressPrinter(quiet=arguments.json) as printer:
        result = follow(run, printer)
    print_json(result) if arguments.json else print(f"{result['dataset']}: {result['added']} pictures added.")
    return 3 if result["failed"] else 0
