"""What the command line prints: a progress line made from events, tables, JSON. The one place that prints."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, Self

from trainer.errors import Cancelled, InkwashError, RunError, error_from_dict
from trainer.events import (
    Changed,
    CheckpointSaved,
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
from trainer.jobs import JOBS, kill_run, reap_children, start_next
from trainer.runs import Run, RunState
from trainer.units import duration, size

_POLL_SECONDS = 0.2


def print_json(value: Any) -> None:
    """One JSON object on a line of its own."""
    sys.stdout.flush()
    print(json.dumps(value, ensure_ascii=False, default=str), flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class ProgressPrinter:
    """Shows events as lines and, on a terminal, one line that is written over, which ends with the `with` it is made in.

    It is a `trainer.progress.Watcher`, too, for what works in this process: Ctrl-C ends that.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._open_line = False
        self._last_line_at = 0.0
        self._stage = ""

    def show(self, event: Event) -> None:
        """Print what a user wants to know of an event."""
        if self._quiet:
            return
        match event:
            case Started():
                resumed = f", resuming after step {event.resumed_from}" if event.resumed_from else ""
                place = ", ".join(part for part in (event.device, event.precision) if part)
                self.line(f"Started{f' on {place}' if place else ''}{resumed}.")
            case Stage():
                self._show_stage(event)
            case StepDone():
                self.over(
                    f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  "
                    f"{event.steps_per_second:.2f} steps/s  {duration(event.eta_seconds)} left",
                    is_last=event.step == event.total_steps,
                )
            case Validated():
                self.line(f"Validation loss after step {event.step}: {event.loss:.4f}")
            case CheckpointSaved():
                self.line(f"Checkpoint after step {event.step} saved.")
            case LoraExported():
                self.line(f"LoRA saved: {event.library_path or event.path} ({size(event.size_bytes)})")
                if event.note:
                    self.line(event.note)
            case Warned() | Changed() | Remedied():
                self.line(f"Note: {event.message}")
            case Picture() if not event.is_preview:
                self.line(f"Picture: {event.path}")
            case _:
                pass

    def _show_stage(self, event: Stage) -> None:
        if event.total:
            left = "" if event.eta_seconds is None else f"  {duration(event.eta_seconds)} left"
            self.over(f"{event.name} {event.amount('/')}{left}", is_last=event.done == event.total)
        elif event.name != self._stage:
            self.line(f"{event.name} …")
        self._stage = event.name

    def over(self, text: str, *, is_last: bool = False) -> None:
        """A line that the next one replaces on a terminal; elsewhere one every few seconds."""
        if self._quiet:
            return
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[2K" + text[:width])
            sys.stderr.flush()
            self._open_line = True
        elif is_last or time.monotonic() - self._last_line_at > 5:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
            self._last_line_at = time.monotonic()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        self.close()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def check_stop(self) -> None:
        """Ctrl-C raises an exception of its own."""

    def stage(self, name: str, done: int, total: int, eta_seconds: float | None, unit: Literal["", "bytes"]) -> None:
        """Print how far this process is."""
        self.show(Stage(name=name, done=done, total=total, eta_seconds=eta_seconds, unit=unit))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the line that is being written over."""
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False


def follow(run: Run, printer: ProgressPrinter, offset: int = 0) -> dict[str, Any]:
    """Show a run's events until it ends. Ctrl-C asks it to stop gracefully; a second one kills it.

    Returns: the result that the run reported.
    Raises: the run's own error; Cancelled when it was stopped; RunError when its process died.
    """
    reader = EventReader(run.events_path, offset)
    stops = 0
    while True:
        try:
            final = _drain(reader, printer)
            if final is not None:
                return _result(final, run)
            reap_children()
            state = run.state()
            if state is RunState.QUEUED:
                start_next(run.data_folder())
                if run.state() is RunState.QUEUED:
                    printer.over("Waiting for another job to finish")
            if state is RunState.INTERRUPTED:
                # The process may have written its last event between our look at the file and at the lock.
                final = _drain(reader, printer)
                if final is not None:
                    return _result(final, run)
                raise _died(run)
            time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            stops += 1
            if stops == 1:
                kept = "after this step; what was learned is kept" if _has_steps(run) else "as soon as it can"
                printer.line(f"Stopping {kept}. Press Ctrl-C again to end it at once.")
                run.request("stop")
            else:
                kill_run(run)
                kept = " The last checkpoint can be resumed." if _has_steps(run) else ""
                raise Cancelled(f"Ended at once.{kept}", where=run.id) from None


def _drain(reader: EventReader, printer: ProgressPrinter) -> Event | None:
    final = None
    for event in reader.read_new():
        printer.show(event)
        final = event if event.is_final else None
    return final


def _result(final: Event, run: Run) -> dict[str, Any]:
    if isinstance(final, Finished):
        return final.result
    if isinstance(final, Stopped) and not _is_resumable(run):
        raise Cancelled("Cancelled.", where=run.id)
    if isinstance(final, Stopped):
        raise Cancelled(
            f"Stopped after step {final.step}." if final.step else "Stopped.",
            where=str(run.folder),
            fix=f"`inkwash resume {run.reference}` goes on.",
        )
    if isinstance(final, Failed):
        raise error_from_dict(final.error)
    raise RunError("The run ended in an unknown way.", where=str(run.log_path))


def _has_steps(run: Run) -> bool:
    return JOBS[run.info().kind].has_steps


def _is_resumable(run: Run) -> bool:
    return JOBS[run.info().kind].is_resumable


def _died(run: Run) -> InkwashError:
    return RunError(
        "The run's process died without a word (killed, out of memory, or the machine went down).",
        where=str(run.log_path),
        fix=f"`inkwash resume {run.reference}` goes on from the last checkpoint.",
    )
