"""What a run will need of memory, and which settings make it fit: asked of a process of its own, which has torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from trainer.config.run import RunConfig
from trainer.errors import InkwashError, error_from_dict
from trainer.jobs import worker_environment
from trainer.paths import PROJECT, DataFolder
from trainer.units import size

_MODULE = "trainer.training.memory_report"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class MemoryReport:
    """An estimate.

    Attributes:
        device: the kind of device that the run will use.
        parts: bytes in a training step, by what they are for.
        phases: the most bytes in each phase of the run.
        peak: the most of all.
        before: the peak of the settings as they were given, where they were to fit; None otherwise.
        taken: what was changed to make it fit: title, cost, changes by path.
        settings: all settings by path, with the changes.
        notes: what the user should know.
    """

    device: str
    parts: dict[str, int]
    phases: dict[str, int]
    peak: int
    before: int | None
    taken: list[dict[str, Any]]
    settings: dict[str, Any]
    notes: list[str]

    def lines(self) -> list[str]:
        """The report for people."""
        found: list[str] = []
        if self.before is not None:
            found.append(f"As it is set, the training needs about {size(self.before)}.")
        for rung in self.taken:
            changes = ", ".join(f"{path} = {json.dumps(value)}" for path, value in rung["changes"].items())
            found.append(f"  {rung['title']}: {changes} ({rung['cost']})")
        where = "of this process's memory" if self.device == "cpu" else f"on the device '{self.device}'"
        found.append(f"Estimated peak: {size(self.peak)} {where}")
        found += [f"  {phase}: {size(count)}" for phase, count in self.phases.items()]
        found.append("In a training step:")
        found += [f"  {part}: {size(count)}" for part, count in self.parts.items() if count]
        return [*found, *self.notes]


def parse_size(text: str) -> int:
    """Bytes of "8GB", "7.5 GiB" or "6000MB". Raises ValueError."""
    stripped = text.strip()
    number = stripped.rstrip("BbGgIiKkMm ")
    unit = stripped[len(number) :].strip().upper()
    value = float(number)
    if unit not in _UNITS or not 0 < value < 1e15:
        raise ValueError(f"'{text}' is no amount of memory")
    return round(value * _UNITS[unit])


def memory_report(config: RunConfig, data: DataFolder, budget: int | None = None) -> MemoryReport:
    """Estimate a run's memory, or find the settings with which it fits into `budget` bytes. Takes seconds to a minute.

    Raises: InkwashError: it does not fit, there is no such model, and the like.
    """
    command = [sys.executable, "-m", _MODULE, "--data-dir", str(data.root)]
    command += [] if budget is None else ["--budget", str(budget)]
    done = subprocess.run(
        command,
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=worker_environment(),
        cwd=PROJECT,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InkwashError(
            f"The memory could not be estimated: {last}", fix="`inkwash doctor` says whether PyTorch works."
        )
    found = json.loads(lines[-1])
    if "error" in found:
        raise error_from_dict(found["error"])
    return MemoryReport(**found)
