"""What can be wrong with a picture, a caption or a folder, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Problem:
    """One thing the user should know. A picture with an `error` is not used; a `warning` says what is done about it."""

    level: Literal["error", "warning"]
    code: str
    message: str
    fix: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it keeps the picture from being used."""
        return self.level == "error"


def error(code: str, message: str, fix: str = "") -> Problem:
    """A problem that keeps the picture from being used."""
    return Problem("error", code, message, fix)


def warning(code: str, message: str, fix: str = "") -> Problem:
    """A problem that is dealt with."""
    return Problem("warning", code, message, fix)
