"""`inkwash resume`: goes on with a run that was stopped, failed or was killed."""

from __future__ import annotations

import argparse

from trainer.cli.commands.train import start_and_follow
from trainer.errors import RunError
from trainer.jobs import JOBS
from trainer.paths import data_folder
from trainer.runs import RunState, find_run

SUMMARY = "go on with a training run from its last checkpoint, to the same result as if it had never been interrupted"
EXAMPLES = """  inkwash resume 20260131-2015
  inkwash resume ~/runs/first --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's id, the start of it, or its folder")
    parser.add_argument("--detach", action="store_true", help="put it in the queue and return at once")


def run(arguments: argparse.Namespace) -> int:
    """Start the run's process again and follow it."""
    data = data_folder(arguments.data_dir)
    old_run = find_run(data, arguments.run)
    info, state = old_run.info(), old_run.state()
    if not JOBS[info.kind].is_resumable:
        raise RunError(f"A run of the kind '{info.kind}' cannot be resumed.", where=old_run.id, fix="Start a new one.")
    if state.is_active or state is RunState.QUEUED:
        raise RunError("This run is already working or waiting.", where=old_run.id, fix="`inkwash jobs` shows it.")
    return start_and_follow(old_run, old_run.data_folder(), arguments)
