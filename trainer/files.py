"""Files written whole or not at all, and paths that stay inside their folder. Imports nothing heavy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from trainer.errors import ResourceError

TEMPORARY_PREFIX = ".partial-"
_REPLACE_TRIES = 5


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds `folder` (or its nearest existing parent)."""
    probe = folder.absolute()
    while not probe.exists():
        probe = probe.parent
    return shutil.disk_usage(probe).free


def require_free(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ResourceError unless `needed_bytes` are free where `folder` is (or will be)."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise ResourceError(
            f"Not enough free disk space for {what}: {needed_bytes / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free.",
            where=str(folder),
            fix="Free some space, or choose another data folder with --data-dir.",
        )


@contextmanager
def disk_errors(path: Path, what: str) -> Iterator[None]:
    """Translate a full or read-only disk into a ResourceError that names `what` and `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"The disk is full: {what} could not be saved.",
                where=str(path),
                fix="Free some space and resume; what was saved before is untouched.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ResourceError(
                f"{what} could not be saved: writing is not allowed there.",
                where=str(path),
                fix="Choose a folder that you may write to, or change its permissions.",
            ) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], object], what: str = "a file") -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it into place.

    A reader sees the old file or the whole new one, never a part. Raises ResourceError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: Pillow and others choose the format by it.
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{time.monotonic_ns()}{path.suffix}"
    try:
        with disk_errors(path, what):
            write(temporary)
            sync_file(temporary)
            replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, what: str = "a file") -> None:
    """Write `data` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data), what)


def write_text(path: Path, text: str, what: str = "a file") -> None:
    """Write `text` atomically as UTF-8 with `\\n` line ends."""
    write_bytes(path, text.encode("utf-8"), what)


def write_json(path: Path, value: Any, what: str = "a file") -> None:
    """Write `value` atomically as indented JSON."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", what)


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system knows how (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, tried again for a moment where Windows refuses because a scanner or viewer has the file open."""
    for attempt in range(_REPLACE_TRIES):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if attempt == _REPLACE_TRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)


def sweep_partial(folder: Path) -> list[Path]:
    """Remove what interrupted writes left in `folder` (not below it); returns what was removed.

    What another process that lives is writing stays: who starts a job notes that in its folder while the job begins.
    """
    removed: list[Path] = []
    for entry in folder.glob(f"{TEMPORARY_PREFIX}*"):
        writer = entry.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        if writer.isdecimal() and int(writer) != os.getpid() and psutil.pid_exists(int(writer)):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
        removed.append(entry)
    return removed


def is_file(path: Path) -> bool:
    """Whether a file is there that can be looked at: False, too, for a name that no system takes, such as one of 300 letters."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`, of a folder."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_inside(path: Path, root: Path) -> bool:
    """Whether `path`, with links and `..` resolved, lies in `root`."""
    return path.resolve().is_relative_to(root.resolve())


_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file or folder name made of `text` that every system accepts: no separators, control characters, reserved
    names, leading or trailing dots; at most 100 UTF-8 bytes; letters of every script stay."""
    name = unicodedata.normalize("NFC", text)
    name = re.sub(r"[\x00-\x1f\x7f<>:\"/\\|?*]+", "_", name)
    name = re.sub(r"\s+", " ", name).strip(" .-")
    name = name.encode("utf-8")[:100].decode("utf-8", errors="ignore").strip(" .")
    if name.split(".")[0].lower() in _RESERVED:
        name = f"_{name}"
    return name or fallback


def unused_path(path: Path) -> Path:
    """`path`, or `path` with " 2", " 3", … before the suffix where it exists: nothing is overwritten."""
    candidate, number = path, 2
    while candidate.exists():
        candidate = path.with_name(f"{path.stem} {number}{path.suffix}")
        number += 1
    return candidate
