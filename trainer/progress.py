"""Progress in words and numbers: told not more than a few times a second, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Protocol

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much. It may raise Cancelled: nothing is kept then."""
_REPORT_SECONDS = 0.2


def no_progress(stage: str, done: int, total: int) -> None:
    """For callers that do not look."""


class Watcher(Protocol):
    """Who looks on, such as a job's context."""

    def check_stop(self) -> None:
        """Raise Cancelled if the user asked to stop."""

    def stage(self, name: str, done: int, total: int, eta_seconds: float | None, unit: Literal["", "bytes"], /) -> None:
        """Hear what is being done now."""


class StageProgress:
    """Called with what is being done, how much of it is done, and of how much. Raises Cancelled where the user asked to stop."""

    def __init__(self, context: Watcher, unit: Literal["", "bytes"] = "") -> None:
        self._context = context
        self._unit: Literal["", "bytes"] = unit
        self._stage = ""
        self._first = self._last = 0
        self._began = self._told = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report it, unless that was done a moment ago and this is not the end."""
        self._context.check_stop()
        now = time.monotonic()
        if stage != self._stage or done < self._last:
            # What was done before (a download that is taken up again) took none of this time.
            self._stage, self._began, self._first = stage, now, done
        elif now - self._told < _REPORT_SECONDS and done < total:
            return
        self._told, self._last = now, done
        new = done - self._first
        left = round((now - self._began) / new * (total - done), 1) if new > 0 and total else None
        self._context.stage(stage, done, total, left, self._unit)
