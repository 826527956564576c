"""`inkwash jobs`: lists runs, shows one, stops one."""

from __future__ import annotations

import argparse
import time
from datetime import datetime

from trainer.cli.output import ProgressPrinter, follow, print_json, print_table
from trainer.events import StepDone
from trainer.jobs import start_next, stop_run
from trainer.paths import data_folder
from trainer.runs import Run, find_run, list_runs, trash_run

SUMMARY = "list what ran, runs or waits; follow, stop or delete it"
EXAMPLES = """  inkwash jobs
  inkwash jobs --show 20260131-2015       (its state, result and log)
  inkwash jobs --follow 20260131-2015
  inkwash jobs --stop 20260131-2015       (gracefully: saves first)
  inkwash jobs --delete 20260131-2015     (moves it to the trash folder)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--show", metavar="RUN", help="state, result and end of the log of a run")
    action.add_argument("--follow", metavar="RUN", help="show a run's progress until it ends")
    action.add_argument("--stop", metavar="RUN", help="ask a run to save and stop, or take it out of the queue")
    action.add_argument("--delete", metavar="RUN", help="move a run that is over to the trash")


def run(arguments: argparse.Namespace) -> int:
    """Do the one thing that was asked, or list."""
    data = data_folder(arguments.data_dir)
    if arguments.stop:
        stop_run(find_run(data, arguments.stop), data)
        print("Asked it to stop.")
    elif arguments.delete:
        print(f"Moved to {trash_run(find_run(data, arguments.delete), data)}")
    elif arguments.follow:
        result = follow(find_run(data, arguments.follow), ProgressPrinter())
        print_json(result) if arguments.json else print("Finished.")
    elif arguments.show:
        _show(find_run(data, arguments.show), as_json=arguments.json)
    else:
        start_next(data)
        rows = [summary(found) for found in list_runs(data)]
        if arguments.json:
            print_json({"jobs": rows})
        elif rows:
            print_table(
                ["run", "kind", "state", "step", "started"], [[str(cell) for cell in row.values()] for row in rows]
            )
        else:
            print("Nothing ran yet.")
    return 0


def summary(found: Run) -> dict[str, str]:
    """A run in one line."""
    info = found.info()
    steps = [event for event in found.tail_events() if isinstance(event, StepDone)]
    step = f"{steps[-1].step}/{steps[-1].total_steps}" if steps else ""
    started = datetime.fromtimestamp(info.created).strftime("%Y-%m-%d %H:%M")
    return {"run": found.id, "kind": info.kind, "state": found.state().value, "step": step, "started": started}


def _show(found: Run, *, as_json: bool) -> None:
    final = found.final_event()
    details = {**summary(found), "folder": str(found.folder), "ended": final.model_dump(mode="json") if final else None}
    if as_json:
        print_json(details)
        return
    for key, value in details.items():
        print(f"{key}: {value}")
    print(f"age: {(time.time() - found.info().created) / 60:.0f} minutes\n\n{found.log_tail(4000)}")
