"""The process of a job: `python -m trainer.worker RUN`, or `--serve DATA` for the kind that stays warm.

On several devices `accelerate launch … -m trainer.worker RUN` starts it once for each (`trainer.ranks`).
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from trainer.errors import Cancelled, InkwashError, ResourceError, RunError, is_out_of_memory
from trainer.events import EventWriter, Failed, Finished, Stopped
from trainer.files import sweep_partial
from trainer.jobs import JOBS, JobContext, needs_device, start_next, warm_lock_path, worker_environment
from trainer.locks import FileLock
from trainer.objects import load_object
from trainer.paths import DataFolder
from trainer.ranks import FollowingRun, Place, main_lock_path, num_devices, own_place, watch, work_on_ranks
from trainer.runs import Run, RunState, list_runs

log = logging.getLogger(__name__)
WARM_SECONDS = 600.0
_POLL_SECONDS = 0.2


def work(run: Run, *, is_asked: bool = False) -> int:
    """Do a run's job if it waits for that, or `is_asked` by hand. Returns the exit code."""
    with FileLock(run.lock_path, wait_seconds=5, busy_message="Another process is working on this run."):
        if not (is_asked or run.is_waiting()):
            return 0  # another process was faster, and did it
        sweep_partial(run.folder)
        run.taken()
        if num_devices(run) > 1 and own_place().count == 1:
            return work_on_ranks(run)
        return _do_job(run)


def _do_job(run: Run) -> int:
    """Do a run's job in this process: the one place where every failure becomes an event. Returns the exit code."""
    emit = EventWriter(run.events_path)
    context = JobContext(run, emit)
    try:
        result = load_object(JOBS[run.info().kind].implementation)(context)
        emit(Finished(result=result or {}))
        return 0
    except Cancelled:
        emit(Stopped(step=_last_step(run)))
        return 0
    except InkwashError as error:
        log.exception("The job failed")
        emit(Failed(error=error.to_dict()))
        return error.exit_code
    except BaseException as error:
        log.exception("The job failed unexpectedly")
        told = _translate(error, run)
        emit(Failed(error=told.to_dict()))
        return told.exit_code
    finally:
        emit.close()
        run.clear_requests()


def work_as_rank(run: Run, place: Place, *, is_asked: bool) -> int:
    """Do this process's part of a run on several devices. Returns the exit code."""
    over = watch(run, place)
    try:
        if place.index:
            return _follow(FollowingRun(run.folder))
        with FileLock(main_lock_path(run), wait_seconds=5, busy_message="Another process is working on this run."):
            return _do_job(run) if place.starter else work(run, is_asked=is_asked)
    finally:
        over.set()


def _follow(run: FollowingRun) -> int:
    """What a process does that is not the main one: the same job, but it writes nothing and reports nothing."""
    try:
        load_object(JOBS[run.info().kind].implementation)(JobContext(run, lambda event: None))
        return 0
    except Cancelled:
        return 0
    except InkwashError as error:
        log.exception("The job failed")
        return error.exit_code


def _last_step(run: Run) -> int:
    return max((getattr(event, "step", 0) for event in run.events()), default=0)


def _translate(error: BaseException, run: Run) -> InkwashError:
    """What a user can be told of an error that nobody expected."""
    if is_out_of_memory(error):
        return ResourceError(
            "The memory of the device was not enough.",
            fix="Lower the batch size or the resolution, turn on gradient checkpointing, or close other programs.",
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ResourceError("The disk is full.", where=str(run.folder), fix="Free some space and resume the run.")
    return InkwashError(
        f"Something went wrong that Inkwash did not expect ({type(error).__name__}: {error}).",
        where=str(run.log_path),
        fix="The log has the details. If it happens again, report it with that log.",
    )


def serve(data: DataFolder) -> int:
    """Do the jobs of the kinds that stay warm, one after the other, until none came for a while or the device is wanted."""
    with FileLock(warm_lock_path(data), busy_message="A warm process is already there."):
        last_work = time.monotonic()
        while time.monotonic() - last_work < WARM_SECONDS:
            waiting = sorted((run for run in list_runs(data) if _waits(run) and needs_device(run)), key=Run.queued_at)
            if waiting and not JOBS[waiting[0].info().kind].stays_warm:
                break
            if waiting and not _someone_works(data):
                _redirect_output(waiting[0].log_path)
                waiting[0].launched(os.getpid())
                work(waiting[0])
                last_work = time.monotonic()
            else:
                time.sleep(_POLL_SECONDS)
    return 0


def _waits(run: Run) -> bool:
    state = run.state()
    # The run that this process was launched for counts as starting until we take it.
    return state is RunState.QUEUED or (state is RunState.STARTING and run.pid() == os.getpid())


def _someone_works(data: DataFolder) -> bool:
    return any(run.state() is RunState.RUNNING and needs_device(run) for run in list_runs(data))


def _redirect_output(path: Path) -> None:
    """Send this process's output to the log of the run that it works on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _stop_on_signals(run: Run, place: Place) -> None:
    """SIGTERM and Ctrl-C ask for a graceful stop; a second one ends the process at once.

    Of several processes each is signalled by whoever signals, and again by their launcher, which also ends them if that
    takes too long: only the main process listens, and once.
    """
    if place.index:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if run.has_request("stop") and place.count == 1:
            os._exit(128 + number)
        run.request("stop")

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m trainer.worker")
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--start", action="store_true", help="start or resume the run, though it is not in the queue")
    options = parser.parse_args(arguments)
    place = own_place()
    which = f"device {place.index + 1}: " if place.count > 1 else ""
    log_format = f"%(asctime)s %(levelname)s {which}%(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=log_format, stream=sys.stderr)
    if options.serve:
        data = DataFolder(options.serve)
        code = serve(data)
        _start_next_quietly(data)
        return code
    for name, value in worker_environment().items():
        os.environ.setdefault(name, value)  # those of a scheduler do not have it
    run = Run(options.run)
    data = run.data_folder()
    _stop_on_signals(run, place)
    if place.count > 1:
        return work_as_rank(run, place, is_asked=options.start)
    code = work(run, is_asked=options.start)
    _start_next_quietly(data)
    return code


def _start_next_quietly(data: DataFolder) -> None:
    try:
        start_next(data)
    except (RunError, OSError):
        log.exception("The next job could not be started; it starts when the app is opened")


if __name__ == "__main__":
    sys.exit(main())
