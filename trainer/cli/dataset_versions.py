"""`inkwash dataset diff` and `restore`: what a run was trained on against what there is now, and bringing it back."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.output import ProgressPrinter, print_json
from trainer.dataset.restoring import Restored, restore_as_new, restore_in_place
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import DatasetVersion, Difference, current_version, differences, read_versions
from trainer.errors import ConfigError
from trainer.paths import DataFolder, data_folder
from trainer.progress import StageProgress
from trainer.runs import Run, find_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of these actions."""
    add = ActionOptions(parser, "diff, restore").add
    add("--set", "diff restore", "which of the run's data sets", metavar="NAME")
    add("--new", "restore", "as a data set of its own, under this name", metavar="NAME")


def diff(arguments: argparse.Namespace) -> int:
    """Say what differs between the data sets of a run and what they are now. Returns 0, whether or not anything does."""
    data = data_folder(arguments.data_dir)
    store, run = DatasetStore(data), find_run(data, _run_name(arguments))
    rows = []
    for version in _versions(run, arguments.set):
        found = differences(version, current_version(store, version.name))
        rows.append(
            {"dataset": version.name, "sha256": version.sha256, "differences": [_as_json(one) for one in found]}
        )
        if not arguments.json:
            print(f"{version.title}: {len(version.pictures)} pictures in {run.id} ({version.sha256[:12]})")
            print("\n".join(f"  {one}" for one in found) or "  nothing has changed since")
    if arguments.json:
        print_json({"run": run.id, "sets": rows})
    return 0


def restore(arguments: argparse.Namespace) -> int:
    """Bring a run's data set back. Returns 3 where a picture could not be brought back."""
    data = data_folder(arguments.data_dir)
    run = find_run(data, _run_name(arguments))
    versions = _versions(run, arguments.set)
    if len(versions) > 1:
        names = ", ".join(f"'{version.name}'" for version in versions)
        raise ConfigError(f"This run has several data sets: {names}.", fix="Say which one with --set NAME.")
    with ProgressPrinter(quiet=arguments.json) as printer:
        restored = _restored(data, run, versions[0], arguments.new, printer)
    if arguments.json:
        print_json(asdict(restored))
    else:
        done = "restored" if restored.has_changed else "as it was already"
        print(f"{restored.name}: {restored.num_pictures} pictures, {done}.")
        print("\n".join(str(problem) for problem in restored.problems))
    return 3 if restored.problems else 0


def _as_json(one: Difference) -> dict[str, str]:
    return {key: value for key, value in asdict(one).items() if key != "what" or value}


def _restored(
    data: DataFolder, run: Run, version: DatasetVersion, new_name: str | None, printer: ProgressPrinter
) -> Restored:
    store = DatasetStore(data)
    progress = StageProgress(printer)
    if new_name:
        return restore_as_new(store, data, version, new_name, progress)
    looking = partial(progress, "Looking at the pictures")
    return restore_in_place(store, version, f"Back to the state of the run {run.id}", looking)


def _run_name(arguments: argparse.Namespace) -> str:
    if len(arguments.what) != 1:
        raise ConfigError("Name one run.", fix="`inkwash jobs` lists the runs there are.")
    return arguments.what[0]


def _versions(run: Run, wanted: str | None) -> list[DatasetVersion]:
    versions = read_versions(run.folder)
    chosen = [version for version in versions if wanted in (None, version.name, version.title)]
    if not chosen:
        names = ", ".join(f"'{version.name}'" for version in versions)
        raise ConfigError(f"The run was not trained on '{wanted}'.", fix=f"It was trained on {names}.")
    return chosen
