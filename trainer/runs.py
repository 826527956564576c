"""A run: a folder that holds all there is to know about one job, and the states that follow from it.

<run>/run.json        what it is; written first, once
      config.json     its settings, resolved; the job's only input
      queued          present while it waits for its process
      launch.json     which process was started for it, and when
      run.lock        held by that process while it lives
      events.jsonl    what happened (trainer.events)
      requests/       what the user asks of it: a small file each (stop, save, preview, accept_changes)
      log.txt         the process's own log, with tracebacks
      datasets.json   what a training was trained on (trainer.dataset.versions)
      checkpoints/ samples/ lora/ …  what it made
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import psutil

from trainer.errors import RunError
from trainer.events import Event, Failed, Finished, Stopped, read_events
from trainer.files import replace, safe_name, unused_path, write_json, write_text
from trainer.locks import is_locked
from trainer.paths import DataFolder

RequestName = Literal["stop", "save", "preview", "accept_changes"]
_WHILE_WORKING: tuple[RequestName, ...] = ("stop", "save", "preview")
_TAIL_BYTES = 65536


class RunState(Enum):
    """What a run is doing, as read from its folder."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_active(self) -> bool:
        """Whether a process works on it or is about to."""
        return self in (RunState.STARTING, RunState.RUNNING)

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to it unless the user asks."""
        return self in (RunState.FINISHED, RunState.STOPPED, RunState.FAILED, RunState.INTERRUPTED)


@dataclass(frozen=True)
class RunInfo:
    """What was known of a run when it was made; `in_data_folder`: it lies in `runs/` of the data folder."""

    kind: str
    title: str
    created: float
    data_root: str
    in_data_folder: bool = False


class Run:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def id(self) -> str:
        """The folder's name, unique in its data folder."""
        return self.folder.name

    @property
    def reference(self) -> str:
        """What `find_run` finds it by, as it is typed on a command line: its id or, in a folder of the user's own, that folder."""
        try:
            return self.id if self.info().in_data_folder else shlex.quote(str(self.folder))
        except RunError:
            return self.id

    @property
    def config_path(self) -> Path:
        """The job's settings (JSON)."""
        return self.folder / "config.json"

    @property
    def events_path(self) -> Path:
        """What happened (JSON lines)."""
        return self.folder / "events.jsonl"

    @property
    def log_path(self) -> Path:
        """The process's log."""
        return self.folder / "log.txt"

    @property
    def lock_path(self) -> Path:
        """Held by the process that works on the run."""
        return self.folder / "run.lock"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        """Folder of sample pictures."""
        return self.folder / "samples"

    @property
    def lora(self) -> Path:
        """Folder of exported LoRA files."""
        return self.folder / "lora"

    @property
    def _queued_path(self) -> Path:
        return self.folder / "queued"

    @property
    def _launch_path(self) -> Path:
        return self.folder / "launch.json"

    def info(self) -> RunInfo:
        """What the run is. Raises RunError where the folder holds no run."""
        try:
            data = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            root, in_data_folder = data["data_root"], data.get("in_data_folder", False)
            return RunInfo(data["kind"], data["title"], data["created"], root, in_data_folder)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                "There is no run in this folder.",
                where=str(self.folder),
                fix="`inkwash jobs` lists the runs there are.",
            ) from error

    def data_folder(self) -> DataFolder:
        """The data folder that the run belongs to."""
        info = self.info()
        if info.in_data_folder and self.folder.parent.name == "runs":
            # Moved or copied together, they still belong together.
            return DataFolder(self.folder.parent.parent)
        return DataFolder(Path(info.data_root))

    def config(self) -> dict[str, Any]:
        """The run's settings as plain data."""
        try:
            return json.loads(self.config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError("The run's settings cannot be read.", where=str(self.config_path)) from error

    def state(self) -> RunState:
        """What the run is doing now."""
        if is_locked(self.lock_path):
            return RunState.RUNNING
        if self._queued_path.exists():
            if not self._launch_path.exists():
                return RunState.QUEUED
            return RunState.STARTING if self._launched_process_lives() else RunState.INTERRUPTED
        final = self.final_event()
        if isinstance(final, Finished):
            return RunState.FINISHED
        if isinstance(final, Stopped):
            return RunState.STOPPED
        if isinstance(final, Failed):
            return RunState.FAILED
        return RunState.INTERRUPTED

    def final_event(self) -> Event | None:
        """The event that ended the run's last process, or None where it died without one."""
        events = self.tail_events()
        return events[-1] if events and events[-1].is_final else None

    def events(self) -> list[Event]:
        """All events so far."""
        return read_events(self.events_path)

    def tail_events(self) -> list[Event]:
        """The latest events (of the last 64 KiB)."""
        from trainer.events import EventReader

        try:
            size = self.events_path.stat().st_size
        except FileNotFoundError:
            return []
        return EventReader(self.events_path, max(0, size - _TAIL_BYTES)).read_new()

    def _launched_process_lives(self) -> bool:
        try:
            launch = json.loads(self._launch_path.read_text(encoding="utf-8"))
            # A reused pid belongs to a process that was created at another time.
            created = psutil.Process(launch["pid"]).create_time()
            return abs(created - launch["process_created"]) < 2.0
        except (OSError, ValueError, KeyError, psutil.Error):
            return False

    def enqueue(self) -> None:
        """Mark the run as waiting for a process."""
        self._launch_path.unlink(missing_ok=True)
        self.clear_requests(*_WHILE_WORKING)
        write_text(self._queued_path, f"{time.time()}\n")

    def queued_at(self) -> float:
        """When the run was enqueued, for the order of the queue."""
        try:
            return float(self._queued_path.read_text())
        except (OSError, ValueError):
            return 0.0

    def launched(self, pid: int) -> None:
        """Note the process that was started for the run."""
        try:
            created = psutil.Process(pid).create_time()
        except psutil.Error:
            created = 0.0
        write_json(self._launch_path, {"pid": pid, "process_created": created, "time": time.time()})

    def is_waiting(self) -> bool:
        """Whether nobody has begun to work on it since it was enqueued."""
        return self._queued_path.exists()

    def taken(self) -> None:
        """The process that holds the lock says that the run no longer waits."""
        self._queued_path.unlink(missing_ok=True)

    def dequeue(self) -> None:
        """Take a waiting run out of the queue; it counts as stopped. Raises RunError when it is no longer waiting."""
        if self.state() not in (RunState.QUEUED, RunState.INTERRUPTED):
            raise RunError("This run is not waiting any more.", where=self.id)
        from trainer.events import EventWriter

        writer = EventWriter(self.events_path)
        writer(Stopped())
        writer.close()
        self._queued_path.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """The process that was launched for the run, if it still lives."""
        if not self._launched_process_lives():
            return None
        return int(json.loads(self._launch_path.read_text(encoding="utf-8"))["pid"])

    def request(self, name: RequestName) -> None:
        """Ask the run's process for something; it answers within a step."""
        write_text(self.folder / "requests" / name, f"{time.time()}\n")

    def has_request(self, name: RequestName) -> bool:
        """Whether something was asked for."""
        return (self.folder / "requests" / name).exists()

    def clear_requests(self, *names: RequestName) -> None:
        """Forget requests: those named, or all."""
        for name in names or (*_WHILE_WORKING, "accept_changes"):
            (self.folder / "requests" / name).unlink(missing_ok=True)

    def log_tail(self, max_bytes: int = 20000) -> str:
        """The end of the log."""
        try:
            with open(self.log_path, "rb") as handle:
                handle.seek(0, os.SEEK_END)
                handle.seek(max(0, handle.tell() - max_bytes))
                return handle.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def create_run(data: DataFolder, kind: str, title: str, config: dict[str, Any], folder: Path | None = None) -> Run:
    """Make a run's folder, complete before it has its name. Nothing that exists is overwritten.

    Args:
        data: the data folder it belongs to.
        kind: a key of `trainer.jobs.JOBS`.
        title: for lists.
        config: its settings, JSON-able.
        folder: where to put it; a new folder in `data.runs` if not given.

    Raises: RunError: `folder` exists and is not empty.
    """
    if folder is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = unused_path(data.runs / f"{stamp}-{safe_name(title)[:40].strip()}-{secrets.token_hex(2)}")
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()):
        raise RunError(
            "This folder already holds something.",
            where=str(folder),
            fix="Name a new folder; `inkwash resume` goes on with an old run.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".partial-{folder.name}-{secrets.token_hex(2)}"
    partial.mkdir()
    write_json(partial / "config.json", config)
    info = RunInfo(kind, title, time.time(), str(data.root), folder.parent == data.runs.absolute())
    write_json(partial / "run.json", asdict(info))
    if folder.exists():
        folder.rmdir()
    replace(partial, folder)
    return Run(folder)


def list_runs(data: DataFolder) -> list[Run]:
    """All runs of a data folder, newest first."""
    if not data.runs.exists():
        return []
    found = [
        Run(entry) for entry in data.runs.iterdir() if (entry / "run.json").exists() and not entry.name.startswith(".")
    ]
    return sorted(found, key=lambda run: run.id, reverse=True)


def find_run(data: DataFolder, name: str) -> Run:
    """The run with this id, unique start of an id, or folder. Raises RunError."""
    folder = Path(name).expanduser()
    if (folder / "run.json").exists():
        return Run(folder)
    matches = [run for run in list_runs(data) if run.id == name] or [
        run for run in list_runs(data) if run.id.startswith(name)
    ]
    if len(matches) != 1:
        raise RunError(
            f"There is no run '{name}'." if not matches else f"'{name}' could be any of {len(matches)} runs.",
            fix="`inkwash jobs` lists the runs there are.",
        )
    return matches[0]


def trash_run(run: Run, data: DataFolder) -> Path:
    """Move a run that is over to the trash. Raises RunError while it is active."""
    if run.state().is_active:
        raise RunError("This run is still working.", where=run.id, fix="Stop it first.")
    data.trash.mkdir(parents=True, exist_ok=True)
    target = unused_path(data.trash / run.id)
    shutil.move(run.folder, target)
    return target
