"""Runs as the tabs see them: lists, what happened so far, what can be asked of them. All of it is read from their folders.

What was read of a run is kept in memory and only added to, so that any number of browser tabs can poll once a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import ChangedRunError, InkwashError, NonFiniteLossError, RunError, error_from_dict
from trainer.events import (
    Changed,
    Event,
    EventReader,
    Failed,
    Finished,
    LoraExported,
    Picture,
    Remedied,
    Stage,
    Started,
    StepDone,
    Stopped,
    Validated,
    Warned,
)
from trainer.jobs import JOBS, enqueue, kill_run, reap_children, start_next, stop_run
from trainer.paths import DataFolder
from trainer.resumption import Resumption, prepare_resumption
from trainer.runs import RequestName, Run, RunInfo, RunState, create_run, list_runs, trash_run

log = logging.getLogger(__name__)

KILL_AFTER_SECONDS = 20.0
"""How long a run may take to obey a stop before ending it by force is offered."""
_KEPT_HISTORIES = 64


@dataclass
class History:
    """What a run's events say, in the order of its steps. Of a resumed run, steps done twice count once."""

    run: Run
    reader: EventReader
    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    samples: dict[tuple[int, int], Picture] = field(default_factory=dict)
    preview: Picture | None = None
    started: list[Started] = field(default_factory=list)
    stage: Stage | None = None
    last_step: StepDone | None = None
    lora: LoraExported | None = None
    warnings: list[str] = field(default_factory=list)
    final: Event | None = None
    num_events: int = 0

    def update(self) -> None:
        """Read what is new."""
        for event in self.reader.read_new():
            self.num_events += 1
            self._add(event)

    def _add(self, event: Event) -> None:
        match event:
            case Started():
                self.started.append(event)
                self.final, self.stage = None, None
            case Stage():
                self.stage = event
            case StepDone():
                self.last_step = event
                _append_step(self.losses, event.step, event.loss)
            case Validated():
                _append_step(self.validations, event.step, event.loss)
            case Picture(is_preview=True):
                self.preview = event
            case Picture():
                self.samples[event.step, event.index] = event
            case LoraExported():
                self.lora = event
            case Warned() | Changed() | Remedied():
                if not isinstance(event, Warned):
                    self._go_back(event.back_to if isinstance(event, Remedied) else event.step)
                if event.message not in self.warnings:
                    self.warnings.append(event.message)
            case _ if event.is_final:
                self.final = event

    def _go_back(self, step: int) -> None:
        """What was made of later steps is of weights that the run no longer has."""
        self.samples = {key: picture for key, picture in self.samples.items() if key[0] <= step}
        if self.lora is not None and self.lora.step > step:
            self.lora = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 while unknown."""
        if self.last_step:
            return self.last_step.total_steps
        return self.started[-1].total_steps if self.started else 0

    @property
    def error(self) -> InkwashError | None:
        """Why the run failed."""
        return error_from_dict(self.final.error) if isinstance(self.final, Failed) else None

    @property
    def result(self) -> dict[str, Any]:
        """What a finished run reports."""
        return self.final.result if isinstance(self.final, Finished) else {}


def _append_step(points: list[tuple[int, float]], step: int, value: float) -> None:
    while points and points[-1][0] >= step:
        points.pop()
    points.append((step, value))


@dataclass(frozen=True)
class JobRow:
    """A run in a list."""

    id: str
    kind: str
    title: str
    state: RunState
    created: float
    started: float | None
    ended: float | None
    result: str

    @property
    def is_resumable(self) -> bool:
        """Whether it can go on from where it was."""
        return self.kind in JOBS and JOBS[self.kind].is_resumable and self.is_unfinished

    @property
    def is_unfinished(self) -> bool:
        """Whether it is over without having come to its end."""
        return self.state.is_over and self.state is not RunState.FINISHED

    @property
    def is_extensible(self) -> bool:
        """Whether it can be trained for more steps, finished or not."""
        return self.kind in JOBS and JOBS[self.kind].has_steps and self.state.is_over


class JobService:
    """The runs of a data folder. Thread-safe: gradio answers several polls at once."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._infos: dict[str, RunInfo] = {}
        self._pictures: dict[str, list[Path]] = {}
        self._over: dict[str, tuple[Any, RunState, JobRow]] = {}

    def run(self, run_id: str) -> Run:
        """The run with this id. Ids come from the browser: only a folder of this data folder is one. Raises RunError."""
        run = Run(self._data.runs / Path(str(run_id)).name)
        if not run_id or run.id != run_id or run_id.startswith(".") or not (run.folder / "run.json").exists():
            raise RunError("This run is not there any more.", where=str(run_id), fix="Choose another in the Jobs tab.")
        return run

    def info(self, run_id: str) -> RunInfo:
        """What the run is; read once."""
        if run_id not in self._infos:
            self._infos[run_id] = self.run(run_id).info()
        return self._infos[run_id]

    def history(self, run_id: str) -> History:
        """What happened in the run until now."""
        run = self.run(run_id)
        with self._lock:
            history = self._histories.pop(run_id, None) or History(run, EventReader(run.events_path))
            self._histories[run_id] = history
            while len(self._histories) > _KEPT_HISTORIES:
                self._histories.popitem(last=False)
            history.update()
            return history

    def ids(self, kind: str = "") -> list[str]:
        """Ids of the runs of a kind (or all), newest first."""
        found = []
        for run in list_runs(self._data):
            try:
                if not kind or self.info(run.id).kind == kind:
                    found.append(run.id)
            except RunError:
                log.warning("A run folder cannot be read: %s", run.folder)
        return found

    def newest(self, kind: str) -> str | None:
        """The run of a kind to look at first: the one that works, else that waits, else the newest."""
        rows = self.rows(kind)
        for wanted in (lambda state: state.is_active, lambda state: state is RunState.QUEUED):
            for row in rows:
                if wanted(row.state):
                    return row.id
        return rows[0].id if rows else None

    def rows(self, kind: str = "") -> list[JobRow]:
        """The runs of a kind (or all), newest first."""
        found = []
        for run_id in self.ids(kind):
            try:
                found.append(self.row(run_id))
            except RunError:  # deleted in another tab since it was listed
                log.info("The run %s is gone", run_id)
        return found

    def row(self, run_id: str) -> JobRow:
        """A run in a list. Of a run that is over, the disk is asked only whether that is still so."""
        run = self.run(run_id)
        mark = _mark(run)
        kept = self._over.get(run_id)
        if kept and kept[0] == mark:
            return kept[2]
        state, info, history = run.state(), self.info(run_id), self.history(run_id)
        ended = history.final.time if history.final and state.is_over else None
        row = JobRow(
            id=run_id,
            kind=info.kind,
            title=info.title,
            state=state,
            created=info.created,
            started=history.started[0].time if history.started else None,
            ended=ended,
            result=_result_text(history, state),
        )
        if state.is_over and mark == _mark(run):
            self._over[run_id] = (mark, state, row)
        return row

    def pictures(self, run_id: str) -> list[Path]:
        """The finished pictures of a run, in the order in which they were made."""
        row = self.row(run_id)
        kept = self._pictures.get(run_id)
        if kept is not None and row.state.is_over:
            return kept
        history = self.history(run_id)
        found = [history.run.folder / picture.path for _, picture in sorted(history.samples.items())]
        if row.state.is_over:
            self._pictures[run_id] = found
        return found

    def stop(self, run_id: str) -> None:
        """Ask the run to stop after its step and save, or take it out of the queue."""
        run = self.run(run_id)
        if run.state().is_over:
            raise RunError("This run is over already.", where=self.info(run_id).title)
        stop_run(run, self._data)

    def request(self, run_id: str, name: RequestName) -> None:
        """Ask a working run for something. Raises RunError when it does not work."""
        run = self.run(run_id)
        if run.state() is not RunState.RUNNING:
            raise RunError("This run is not working now.", where=self.info(run_id).title)
        run.request(name)

    def can_kill(self, run_id: str) -> bool:
        """Whether the run was asked to stop a while ago and still works."""
        run = self.run(run_id)
        try:
            asked = (run.folder / "requests" / "stop").stat().st_mtime
        except OSError:
            return False
        return time.time() - asked > KILL_AFTER_SECONDS and run.state().is_active

    def kill(self, run_id: str) -> None:
        """End the run's process at once; its last checkpoint stays."""
        kill_run(self.run(run_id))

    def resume(self, run_id: str, wish: Resumption = Resumption()) -> None:  # noqa: B008 - frozen
        """Let the run go on from its last checkpoint, as `wish` says; with other `steps` a finished one, too."""
        row = self.row(run_id)
        if not (row.is_resumable or (row.is_extensible and wish.steps is not None)):
            raise RunError("This run cannot be resumed.", where=row.title, fix="Retry starts it anew as another run.")
        prepare_resumption(self.run(run_id), wish)
        enqueue(self.run(run_id), self._data)

    def remedies(self, run_id: str) -> dict[str, Resumption]:
        """What can be done about the fault that ended a run, by the words of the button that does it."""
        if self.row(run_id).state is not RunState.FAILED:
            return {}
        match self.history(run_id).error:
            case NonFiniteLossError():
                return {
                    "Go on with lower rates": Resumption(on_nan="lower_rate"),
                    "Leave such steps out": Resumption(on_nan="skip_batch"),
                }
            case ChangedRunError():
                return {"Accept the changes and resume": Resumption(accepts_changes=True)}
            case _:
                return {}

    def retry(self, run_id: str) -> str:
        """Start a new run with the same settings. Returns its id."""
        run, info = self.run(run_id), self.info(run_id)
        new = create_run(self._data, info.kind, info.title, run.config())
        enqueue(new, self._data)
        return new.id

    def delete(self, run_id: str) -> Path:
        """Move a run that is over to the trash. Returns where it is now."""
        run = self.run(run_id)
        if run.state() is RunState.QUEUED:
            raise RunError("This run waits to be started.", where=self.info(run_id).title, fix="Cancel it first.")
        target = trash_run(run, self._data)
        with self._lock:
            self._histories.pop(run_id, None)
            self._infos.pop(run_id, None)
            self._over.pop(run_id, None)
            self._pictures.pop(run_id, None)
        return target


def _mark(run: Run) -> tuple[Any, ...] | None:
    """Changes when anything happens to a run that is over; None while one cannot tell."""
    from trainer.locks import is_locked

    if is_locked(run.lock_path):
        return ("locked", time.monotonic_ns())
    try:
        facts = run.events_path.stat()
        events: tuple[int, int] = (facts.st_size, facts.st_mtime_ns)
    except OSError:
        events = (0, 0)
    return (*events, (run.folder / "queued").exists(), (run.folder / "launch.json").exists())


def _result_text(history: History, state: RunState) -> str:
    if state is RunState.FAILED and history.error:
        return history.error.message
    if state is RunState.INTERRUPTED:
        return "Ended without saying why (power cut, killed, or out of memory)"
    if state is RunState.STOPPED and isinstance(history.final, Stopped):
        return f"Stopped at step {history.final.step}" if history.final.step else "Cancelled"
    result = history.result
    if "pictures" in result:
        count = len(result["pictures"])
        return f"{count} picture{'' if count == 1 else 's'}"
    if result.get("lora"):
        return Path(str(result.get("library_path") or result["lora"])).name
    if "summary" in result:
        return ", ".join(Path(str(file)).name for file in result.get("files", ())) or str(result["summary"])
    if result.get("model"):
        return str(result["model"])
    if state.is_active and history.total_steps:
        return f"Step {history.last_step.step if history.last_step else 0} of {history.total_steps}"
    return ""


class QueueClock:
    """A thread of the UI process that starts what waits, once a second, and collects children that ended."""

    def __init__(self, data: DataFolder, seconds: float = 1.0) -> None:
        self._data = data
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="queue-clock", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; jobs that run go on."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _work(self) -> None:
        last_fault = ""
        while not self._ended.wait(self._seconds):
            try:
                reap_children()
                start_next(self._data)
                last_fault = ""
            except (InkwashError, OSError) as error:
                if str(error) != last_fault:  # once, not once a second
                    log.exception("The next job could not be started")
                last_fault = str(error)
