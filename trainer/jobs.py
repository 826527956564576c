"""The kinds of jobs, what their code is given, and the one queue that starts them.

One job that needs the device works at a time in a data folder; others go on beside it. Who starts the next one: whoever enqueues, the job
that just ended, and the UI's clock; the queue's lock lets only one of them do it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import Cancelled, RunError
from trainer.events import Event, Stage
from trainer.locks import FileLock, is_locked
from trainer.paths import PROJECT, DataFolder
from trainer.runs import Run, RunState, list_runs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobKind:
    """A kind of job. `implementation` is `module:function`, called with a JobContext; what it returns is the result."""

    implementation: str
    title: str
    stays_warm: bool = False
    """Whether its process waits for the next job of the kind, with the model loaded."""
    is_resumable: bool = False
    has_steps: bool = False
    """Whether it is trained in steps: it can be made longer, and can end in NaN."""
    needs_device: bool = True
    """Whether it waits until no other job that needs the device works."""
    light: tuple[str, tuple[str, ...]] | None = None
    """(setting, values) of those runs of the kind that need no device, where others do."""


JOBS: dict[str, JobKind] = {
    "train": JobKind("trainer.training.job:train", "Training", is_resumable=True, has_steps=True),
    "compare": JobKind("trainer.sampling.compare:compare", "Before and after"),
    "generate": JobKind("trainer.sampling.job:generate", "Generation", stays_warm=True),
    "grid": JobKind("trainer.sampling.grid:make_grid", "Grid", stays_warm=True, is_resumable=True),
    "upscale": JobKind("trainer.sampling.enlarging:upscale", "Enlarging"),
    "tool": JobKind("trainer.tools.job:work", "LoRA tool", needs_device=False),
    "check": JobKind("trainer.dataset.doctor.job:check", "Data set check", needs_device=False),
    "masks": JobKind("trainer.dataset.cutout_job:cut", "Masks by a model", needs_device=False),
    "caption": JobKind(
        "trainer.captioners.job:caption",
        "Captioning",
        is_resumable=True,
        light=("captioner", ("builtin", "server")),
    ),
    "download": JobKind("trainer.base_models.download:download", "Download", needs_device=False),
    "import": JobKind("trainer.dataset.bring_job:bring", "Bringing pictures in", needs_device=False),
    "restore": JobKind("trainer.dataset.bring_job:restore", "Data set of a run", needs_device=False),
    "fetch": JobKind("trainer.dataset.fetch_job:fetch", "Fetching pictures", needs_device=False),
}


@dataclass
class JobContext:
    """What a job is given: its run, a way to say what happens, and what the user asks for."""

    run: Run
    emit: Callable[[Event], None]

    def stage(
        self,
        name: str,
        done: int = 0,
        total: int = 0,
        eta_seconds: float | None = None,
        unit: Literal["", "bytes"] = "",
    ) -> None:
        """Say what is being done now."""
        self.emit(Stage(name=name, done=done, total=total, eta_seconds=eta_seconds, unit=unit))

    def stop_requested(self) -> bool:
        """Whether the user asked to stop."""
        return self.run.has_request("stop")

    def check_stop(self) -> None:
        """Raise Cancelled if the user asked to stop."""
        if self.stop_requested():
            raise Cancelled("Stopped.")


# glibc returns every large buffer to the kernel and faults it in again; a heap that keeps them made a training step
# on the CPU 1.5 times faster in benchmarks/allocator.py. Passive waiting keeps a busy second program from slowing us 3-5 times.
_WORKER_ENVIRONMENT = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUTF8": "1",
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_DISABLE_CUSTOM_CODE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    "HF_HUB_OFFLINE": "1",
}


def worker_environment() -> dict[str, str]:
    """The environment of a job's process; what the user set himself stays."""
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**_WORKER_ENVIRONMENT, **os.environ, "PYTHONPATH": path}


def enqueue(run: Run, data: DataFolder) -> None:
    """Put a run in the queue and start it if nothing else works."""
    if run.state().is_active or run.state() is RunState.QUEUED:
        raise RunError("This run is already working or waiting.", where=run.id)
    run.enqueue()
    start_next(data)


def start_next(data: DataFolder) -> Run | None:
    """Start what need not wait for the device, and the run that has waited longest for it, unless one has it.

    Returns: what was started for the device.
    """
    with FileLock(data.runs / "queue.lock", wait_seconds=10, busy_message="The queue is busy."):
        states = {run.id: (run, run.state()) for run in list_runs(data)}
        waiting = sorted((run for run, state in states.values() if state is RunState.QUEUED), key=Run.queued_at)
        for run in waiting:
            if not needs_device(run):
                launch(run)
        waiting = [run for run in waiting if needs_device(run)]
        if not waiting or any(state.is_active and needs_device(run) for run, state in states.values()):
            return None
        run = waiting[0]
        if is_locked(warm_lock_path(data)):
            # The warm process takes its own kind by itself, and leaves when it sees another kind waiting.
            return None
        arguments = ["--serve", str(data.root)] if JOBS[run.info().kind].stays_warm else [str(run.folder)]
        launch(run, arguments)
        return run


def needs_device(run: Run) -> bool:
    """Whether a run waits its turn for the device; one of an unknown kind does."""
    kind = JOBS.get(run.info().kind)
    if kind is None or not kind.needs_device:
        return kind is None
    if kind.light is None:
        return True
    setting, values = kind.light
    try:
        return run.config().get(setting) not in values
    except RunError:
        return True  # it fails in its turn, with that sentence


def launch(run: Run, arguments: list[str] | None = None) -> subprocess.Popen[Any]:
    """Start the process of a run, detached: it lives on when its parent ends."""
    # CREATE_NEW_PROCESS_GROUP | DETACHED_PROCESS; the names exist on Windows only.
    options: dict[str, Any] = (
        {"creationflags": 0x00000200 | 0x00000008} if os.name == "nt" else {"start_new_session": True}
    )
    with open(run.log_path, "ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.worker", *(arguments or [str(run.folder)])],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=worker_environment(),
            cwd=PROJECT,
            **options,
        )
    run.launched(process.pid)
    _remember_child(process)
    return process


_children: list[subprocess.Popen[Any]] = []


def _remember_child(process: subprocess.Popen[Any]) -> None:
    """Keep the handle and reap those that ended, so that no dead child looks alive to psutil."""
    _children[:] = [child for child in _children if child.poll() is None]
    _children.append(process)


def reap_children() -> None:
    """Collect ended processes that this one started."""
    _children[:] = [child for child in _children if child.poll() is None]


def warm_lock_path(data: DataFolder) -> Path:
    """Held by the warm generation process of a data folder."""
    return data.runs / "warm.lock"


def stop_run(run: Run, data: DataFolder) -> None:
    """Ask a run to stop, or take it out of the queue."""
    if run.state() is RunState.QUEUED:
        run.dequeue()
    else:
        run.request("stop")


def kill_run(run: Run) -> None:
    """End a run's process at once; its last checkpoint stays."""
    import psutil

    pid = run.pid()
    if pid is not None:
        process = psutil.Process(pid)
        for child in [*process.children(recursive=True), process]:
            child.kill()
