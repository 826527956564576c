"""`inkwash resume`: goes on with a run that was stopped, failed or was killed, or with a finished one for more steps."""

from __future__ import annotations

import argparse

from trainer.cli.commands.train import start_and_follow
from trainer.paths import data_folder
from trainer.resumption import Resumption, prepare_resumption
from trainer.runs import find_run

SUMMARY = "go on with a training run from its last checkpoint, to the same result as if it had never been interrupted"
EXAMPLES = """  inkwash resume 20260131-2015
  inkwash resume 20260131-2015 --steps 3000          (a finished run too: trains on to 3000 steps in all)
  inkwash resume 20260131-2015 --on-nan lower_rate   (after NaN: back to the last checkpoint, with lower rates)
  inkwash resume ~/runs/first --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run's id, the start of it, or its folder")
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        metavar="N",
        help="train to N steps in all; the schedule is stretched to them",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although settings, pictures or the base model changed since; what changed is noted in the run",
    )
    parser.add_argument(
        "--on-nan",
        default="",
        choices=["stop", "skip_batch", "lower_rate"],
        help="what to do from now on when the loss becomes NaN or infinite (training.on_nan)",
    )
    parser.add_argument("--detach", action="store_true", help="put it in the queue and return at once")


def run(arguments: argparse.Namespace) -> int:
    """Start the run's process again and follow it."""
    data = data_folder(arguments.data_dir)
    old_run = find_run(data, arguments.run)
    wish = Resumption(steps=arguments.steps, on_nan=arguments.on_nan, accepts_changes=arguments.accept_changes)
    prepare_resumption(old_run, wish)
    return start_and_follow(old_run, old_run.data_folder(), arguments)
