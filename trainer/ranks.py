"""A run on several devices: one process for each, a *rank*, started by accelerate's own launcher.

Started here, the process of the job holds the run's lock and watches over the launcher, which watches over the ranks; rank 0,
the main process, does what the one process of other runs does and writes the events. Started by hand (`accelerate launch
-m trainer.worker RUN --start`, on one machine or many) rank 0 holds the run's lock itself.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.errors import RunError
from trainer.events import EventReader, EventWriter, Failed
from trainer.locks import is_locked
from trainer.runs import RequestName, Run

log = logging.getLogger(__name__)
_STARTER = "INKWASH_STARTER"
LOOK_SECONDS = 1.0
"""How long a process may take to see that one it depends on has ended."""


@dataclass(frozen=True)
class Place:
    """This process among those of its run, over all machines and on its own; `starter` is the job's process, if we started it."""

    index: int = 0
    count: int = 1
    local_index: int = 0
    local_count: int = 1
    starter: int = 0


def own_place() -> Place:
    """What the launcher told this process (torchrun's variables, which accelerate's launcher sets)."""
    count = _number("WORLD_SIZE", 1)
    if count < 2:
        return Place()
    return Place(
        _number("RANK", 0), count, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1), _number(_STARTER, 0)
    )


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, ""))
    except ValueError:
        return default


def num_devices(run: Run) -> int:
    """How many processes a run wants; 1 where its settings cannot be read, for its job says so better."""
    try:
        return int(run.config()["training"]["num_devices"]) if run.info().kind == "train" else 1
    except (RunError, KeyError, TypeError, ValueError):
        return 1


def main_lock_path(run: Run) -> Path:
    """Held by the main process of a run on several devices, so that the others know whether it lives, on whatever machine."""
    return run.folder / "main.lock"


class FollowingRun(Run):
    """A run as the other processes see it: what the user asks is answered by the main process, which tells them."""

    def has_request(self, name: RequestName) -> bool:
        """Never; see the main process."""
        return False

    def clear_requests(self, *names: RequestName) -> None:
        """Left to the main process."""


def work_on_ranks(run: Run) -> int:
    """Start the ranks of a run on this machine and wait until all have ended; to be called with the run's lock held.

    Returns: the exit code. Where the main process could not say how the run ended, that is said here.
    """
    reader = EventReader(run.events_path, run.events_path.stat().st_size if run.events_path.exists() else 0)
    process = subprocess.Popen(
        launch_command(run, num_devices(run)),
        stdin=subprocess.DEVNULL,
        env={**os.environ, _STARTER: str(os.getpid())},
    )
    code = process.wait()
    if any(event.is_final for event in reader.read_new()):
        return code
    emit = EventWriter(run.events_path)
    emit(Failed(error=_ended(code).to_dict()))
    emit.close()
    run.clear_requests()
    return code or RunError.exit_code


def _ended(code: int) -> RunError:
    return RunError(
        f"A process of this run on several devices ended unexpectedly (the launcher's exit code was {code}).",
        fix="The log says which one, and often why; most often memory was not enough. Resume the run: it goes on from its "
        "last checkpoint.",
    )


def launch_command(run: Run, count: int) -> list[str]:
    """accelerate's launcher for `count` processes on this machine.

    What a configuration file of the user's could change is said here. `--multi_gpu` is torchrun, which starts processes for
    any device, and ends all when one died; accelerate's `--cpu` would need MPI.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (psutil.cpu_count(logical=False) or 1) // count))
    options = {
        "num_processes": str(count),
        "num_machines": "1",
        "machine_rank": "0",
        "main_process_port": "0",
        "gpu_ids": "all",
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": threads,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *flags, "--module", "trainer.worker", str(run.folder)]  # fmt: skip


def watch(run: Run, place: Place) -> threading.Event:
    """End this process soon after what it depends on has ended; until the event that is returned is set.

    A process that waits for another's data in a kernel or a socket sees no signal; this thread does. It looks for the
    launcher, the job's process and, on the main process's machine, for the main process: other machines may not see its lock.
    """
    over = threading.Event()
    needed = [psutil.Process(pid) for pid in (os.getppid(), place.starter) if pid]
    needs_main = bool(place.index) and place.index < place.local_count

    def look() -> None:
        had_main = False
        while not over.wait(LOOK_SECONDS):
            gone = next((process.pid for process in needed if not _lives(process)), None)
            if gone is not None:
                log.error("The process %d, which watches over this one, is gone: this one ends, too", gone)
                os._exit(1)
            has_main = needs_main and is_locked(main_lock_path(run))
            if had_main and not has_main and not over.wait(LOOK_SECONDS):
                log.warning("The main process has ended: this one ends, too")
                os._exit(0)
            had_main = has_main

    threading.Thread(target=look, name="watch", daemon=True).start()
    return over


def _lives(process: psutil.Process) -> bool:
    try:
        # One that nobody has collected is dead as well.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
