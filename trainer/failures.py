"""Pictures that a job could not do: told and passed over, so that one does not end the work on thousands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from trainer.dataset.scan import PictureFacts
from trainer.errors import Cancelled, InkwashError

log = logging.getLogger(__name__)
T = TypeVar("T")
_IN_A_ROW = 3
_TOLD = 20


class Failures:
    """Pictures that a job cannot do: each is told and passed over, unless so many fail in a row that the next ones will, too."""

    def __init__(self, warn: Callable[[str], object]) -> None:
        self._warn = warn
        self.names: list[str] = []
        """Those that failed, in order."""
        self._in_a_row = self._num_done = 0
        self._last: Exception | None = None

    def attempt(self, act: Callable[[PictureFacts], T], facts: PictureFacts, *, again: bool = False) -> T | None:
        """What `act` makes of a picture; None where it fails.

        Args:
            act: does it.
            facts: the picture.
            again: whether it failed in an earlier run of this job, and may fail again.

        Raises: Cancelled. And what `act` raises the third time in a row.
        """
        try:
            made = act(facts)
        except Cancelled:
            raise
        except Exception as error:  # Broad on purpose: models fail on pictures in ways of their own.
            log.warning("%s cannot be done", facts.name, exc_info=True)
            self.names.append(facts.name)
            self._last = error
            self._in_a_row += not again
            if self._in_a_row >= _IN_A_ROW:
                raise
            if len(self.names) <= _TOLD:
                said = error.message if isinstance(error, InkwashError) else f"{type(error).__name__}: {error}"
                self._warn(f"{facts.name} is passed over: {said}")
            return None
        self._num_done += 1
        self._in_a_row = 0
        return made

    def end(self) -> None:
        """Say that all had their turn. Raises: why the last one failed, where none could be done."""
        if self._last is not None and not self._num_done:
            raise self._last
