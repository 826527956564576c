"""`inkwash dataset import` and `fetch`: pictures of one's own into data sets, from this machine or from given addresses."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.dataset.bringing import Brought, bring_in
from trainer.dataset.fetch_job import start_fetch
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError
from trainer.paths import data_folder
from trainer.progress import StageProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `import` and `fetch`."""
    add = ActionOptions(parser, "import, fetch").add
    add("--add", "import", "add the pictures to a data set that is there", action="store_true")
    add("--list", "fetch", "a text file with an address a line", metavar="FILE")
    add("--allow-private", "fetch", "from your own machine and network too", action="store_true")


def bring(arguments: argparse.Namespace) -> int:
    """Make data sets of files, folders and zips, or add them to one. Returns 0."""
    if len(arguments.what) < 2:
        raise ConfigError("Give a name and what to import.", fix="`inkwash dataset import NAME FILE|FOLDER|ZIP…`")
    name, *paths = arguments.what
    data = data_folder(arguments.data_dir)
    sources = [Path(path).expanduser() for path in paths]
    store = DatasetStore(data)
    with ProgressPrinter(quiet=arguments.json) as printer:
        if arguments.add:
            report = store.add_files(name, sources, StageProgress(printer))
            brought = Brought((store.get(name),), (report,))
        else:
            brought = bring_in(store, data, name, sources, progress=StageProgress(printer))
    if arguments.json:
        sets = [{"name": info.name, "pictures": info.num_pictures, **info.concept()} for info in brought.sets]
        print_json({"datasets": sets, "left_out": [str(finding) for finding in brought.left_out]})
        return 0
    for place, info in enumerate(brought.sets):
        told = brought.reports[place].summary() if arguments.add else brought.told(place)
        print(f"{info.name}{' (class pictures)' if info.role else ''}: {told}")
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
