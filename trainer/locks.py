"""Locks that the operating system releases when their process dies, so that none is ever stale."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from trainer.errors import RunError


def _lock(handle: IO[bytes], *, shared: bool = False) -> None:
    if os.name == "nt":
        import msvcrt

        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


_LOOK_SECONDS = 0.25
"""Longer than `is_locked` ever holds a lock: who looks has it for a moment, and that is no holder."""


class FileLock:
    """An exclusive lock on a file; a context manager.

    Args:
        path: the lock file; made when missing, never removed (removing it would let two processes hold "it").
        wait_seconds: how long to try before RunError is raised with `busy_message`; 0 waits just long enough not to
            take somebody's look (`is_locked`) for a holder.
    """

    def __init__(
        self, path: Path, *, wait_seconds: float = 0.0, busy_message: str = "Another process is using this."
    ) -> None:
        self._path = path
        self._wait_seconds = wait_seconds
        self._busy_message = busy_message
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> FileLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(self._path, "ab")
        deadline = time.monotonic() + max(self._wait_seconds, _LOOK_SECONDS)
        while True:
            try:
                _lock(handle)
                self._handle = handle
                return self
            except OSError as error:
                if time.monotonic() >= deadline:
                    handle.close()
                    raise RunError(self._busy_message, where=str(self._path)) from error
                time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock on `path`.

    Looks with a shared lock, so that two who look at once do not take each other for the holder. Windows has none:
    there it looks again a moment later before it believes a refusal.
    """
    for _ in range(3 if os.name == "nt" else 1):
        try:
            with open(path, "rb") as handle:
                _lock(handle, shared=True)
            return False
        except FileNotFoundError:
            return False
        except OSError:
            if os.name == "nt":
                time.sleep(0.01)
    return True
