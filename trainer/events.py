"""The typed records that a run emits, one JSON line each, and their writer and reader."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainer.units import size


class Event(BaseModel):
    """A record of a run. `time` is seconds since the epoch."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    is_final: ClassVar[bool] = False
    """Whether nothing follows this event in the process that wrote it."""

    time: float = Field(default_factory=time.time)


class Started(Event):
    """A process began to work on the run; a resumed run has several."""

    type: Literal["started"] = "started"
    pid: int
    device: str = ""
    precision: str = ""
    total_steps: int = 0
    resumed_from: int = 0


class Stage(Event):
    """What is being done now, in words for the user; `done`/`total` where it can be counted: things, or bytes."""

    type: Literal["stage"] = "stage"
    name: str
    done: int = 0
    total: int = 0
    eta_seconds: float | None = None
    unit: Literal["", "bytes"] = ""
    memory_bytes: int = 0
    """The most of a graphics card's memory that was in use, or what the process holds; 0 where it is not told."""

    def amount(self, between: str) -> str:
        """How much is done, as people read it: "3 of 12", "0.4 of 2.1 GB". Empty where it cannot be counted."""
        if not self.total:
            return ""
        if self.unit == "bytes":
            return f"{size(self.done)}{between}{size(self.total)}"
        return f"{self.done}{between}{self.total}"


class StepDone(Event):
    """A weight update. `step` counts from 1; losses are means since the last such event.

    `grad_norm` is the mean of the finite ones; None where fp16's scaled gradients overflowed in each of these steps.
    """

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    loss: float
    learning_rates: dict[str, float] = {}
    grad_norm: float | None = 0.0
    steps_per_second: float = 0.0
    eta_seconds: float = 0.0
    memory_bytes: int = 0
    epoch: float = 0.0
    prior_loss: float | None = None


class Validated(Event):
    """The validation loss after `step` steps."""

    type: Literal["validation"] = "validation"
    step: int
    loss: float


class Picture(Event):
    """A picture was made. `path` is relative to the run folder."""

    type: Literal["picture"] = "picture"
    step: int = 0
    index: int = 0
    prompt: str = ""
    seed: int = 0
    path: str
    is_preview: bool = False
    """Whether it is a rough view of an unfinished picture."""


class CheckpointSaved(Event):
    """A checkpoint is complete. `path` is relative to the run folder."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str


class LoraExported(Event):
    """A LoRA file is complete and was read back. `path` is relative to the run folder, `library_path` absolute.

    `note` is what the method made of it, such as the ranks that AdaLoRA left.
    """

    type: Literal["lora"] = "lora"
    step: int
    path: str
    library_path: str = ""
    size_bytes: int = 0
    note: str = ""


class Warned(Event):
    """Something the user should know that did not stop the run."""

    type: Literal["warning"] = "warning"
    message: str


class Changed(Event):
    """A run goes on with other settings, pictures or another length than before, because the user asked for it.

    `step` is the last one that was done as before; `changes` say what was and what is.
    """

    type: Literal["changed"] = "changed"
    step: int
    changes: list[str]

    @property
    def message(self) -> str:
        """For people."""
        return f"From step {self.step + 1} on with changes: {'; '.join(self.changes)}."


class Remedied(Event):
    """The loss of step `step` became NaN or infinite, and the run goes on after step `back_to`.

    Either without that step, or with all learning rates times `rate_factor` in all.
    """

    type: Literal["remedy"] = "remedy"
    step: int
    back_to: int
    action: Literal["skip_batch", "lower_rate"]
    rate_factor: float = 1.0
    tries_left: int = 0
    pictures: list[str] = []

    @property
    def message(self) -> str:
        """For people."""
        what = f"NaN or Inf in step {self.step} (pictures: {', '.join(self.pictures) or 'unknown'})"
        if self.action == "skip_batch":
            return f"{what}: that step is left out."
        return f"{what}: back to step {self.back_to} and on with {self.rate_factor:.3g} times the learning rates."


class Finished(Event):
    """The run did all that it was asked to. `result` is what the command reports."""

    is_final: ClassVar[bool] = True
    type: Literal["finished"] = "finished"
    result: dict[str, Any] = {}


class Stopped(Event):
    """The user stopped the run; it can be resumed from `step`."""

    is_final: ClassVar[bool] = True
    type: Literal["stopped"] = "stopped"
    step: int = 0


class Failed(Event):
    """The run failed. `error` is `InkwashError.to_dict()`; the traceback is in the log."""

    is_final: ClassVar[bool] = True
    type: Literal["failed"] = "failed"
    error: dict[str, Any]


AnyEvent = Annotated[
    Started
    | Stage
    | StepDone
    | Validated
    | Picture
    | CheckpointSaved
    | LoraExported
    | Warned
    | Changed
    | Remedied
    | Finished
    | Stopped
    | Failed,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Event] = TypeAdapter(AnyEvent)


class EventWriter:
    """Appends events to `events.jsonl`. The one writer of a run is the process that holds its lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the process
        # A torn last line of a killed process must not swallow our first event.
        if self._handle.tell() and not _ends_with_newline(path):
            self._handle.write(b"\n")

    def __call__(self, event: Event) -> None:
        """Write one line; final events are synced to the disk."""
        self._handle.write(event.model_dump_json().encode("utf-8") + b"\n")
        if event.is_final:
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"


class EventReader:
    """Reads whole lines from where it stopped last; any number of readers can follow one file."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self.offset = offset

    def read_new(self) -> list[Event]:
        """Events since the last call. Lines that are torn, or of an unknown type, are skipped."""
        return [event for event, _ in self.read_each()]

    def read_each(self) -> list[tuple[Event, int]]:
        """As `read_new`; each event with the offset behind it, from which another reader goes on after it."""
        try:
            with open(self._path, "rb") as handle:
                handle.seek(self.offset)
                data = handle.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = data.rpartition(b"\n")
        begin = self.offset
        self.offset += len(whole) + len(newline)
        return list(_parse(whole.split(b"\n"), begin))


def read_events(path: Path) -> list[Event]:
    """All events of a file."""
    return EventReader(path).read_new()


def _parse(lines: list[bytes], end: int) -> Iterator[tuple[Event, int]]:
    for line in lines:
        end += len(line) + 1
        if not line.strip():
            continue
        try:
            yield _ADAPTER.validate_python(json.loads(line)), end
        except (ValueError, ValidationError):
            continue
