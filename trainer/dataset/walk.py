"""The files of a folder and the folders in it: no hidden ones, nothing outside by way of links."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.dataset.problems import Problem, warning
from trainer.errors import DatasetError

MAX_DEPTH = 32
MAX_FILES = 200_000
_HIDDEN_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}


Stamp = tuple[int, ...]
_SETTLED_NS = 2_000_000_000
"""A change within the same tick of a clock as the look before it leaves the same times. Ticks are 2 seconds at worst (FAT), so
what is younger may have changed without a trace."""


@dataclass
class Walked:
    """Files found (real ones, inside the folder), and what was passed over for a reason."""

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    folders: dict[Path, Stamp | None] = field(default_factory=dict)
    """The folders that were looked into, as they were just before."""
    names: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    """What lay in each of them, as `names_in` says it."""


def is_hidden_name(name: str) -> bool:
    """Whether a file or folder belongs to a system or a program: `.DS_Store`, `._photo.jpg`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


def readable_name(path: Path | str) -> str:
    """A path that can be shown and written as UTF-8, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", errors="replace")


def name_below(path: Path, folder: Path) -> str:
    """A path below a folder, with `/`. Ten times as fast as `relative_to`, which matters for thousands of pictures."""
    text, start = str(path), os.path.join(str(folder), "")
    return text[len(start) :].replace(os.sep, "/") if text.startswith(start) else path.relative_to(folder).as_posix()


def stamp_of(path: Path) -> Stamp | None:
    """What changes with a file or folder: its size and times. None where it is gone, or so young that a change might not show."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    # ctime: permissions and replaced files; mtime: also where a copy brought an old one along.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) <= _SETTLED_NS:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)


def names_in(folder: Path) -> tuple[str, ...] | None:
    """Kind and name of all that lies in one folder, sorted, without what is hidden; None where it cannot be read."""
    try:
        with os.scandir(folder) as listing:
            return _names_of(sorted(listing, key=lambda entry: entry.name))
    except OSError:
        return None


def _names_of(entries: Iterable[os.DirEntry[str]]) -> tuple[str, ...]:
    return tuple(f"{_kind(entry)}{entry.name}" for entry in entries if not is_hidden_name(entry.name))


def _kind(entry: os.DirEntry[str]) -> str:
    return "l" if entry.is_symlink() else "d" if entry.is_dir(follow_symlinks=False) else "f"


def walk_folder(folder: Path) -> Walked:
    """All files below `folder`. Raises DatasetError when `folder` itself cannot be read."""
    try:
        root = folder.resolve(strict=True)
        with os.scandir(root):
            pass
    except FileNotFoundError as failure:
        raise DatasetError(
            "This folder does not exist.", where=readable_name(folder), fix="Check the path."
        ) from failure
    except NotADirectoryError as failure:
        raise DatasetError("This is a file, not a folder.", where=readable_name(folder)) from failure
    except PermissionError as failure:
        raise DatasetError(
            "This folder may not be read.", where=readable_name(folder), fix="Change its permissions."
        ) from failure
    except (OSError, RuntimeError, ValueError) as failure:
        raise DatasetError(
            f"This folder cannot be read ({failure}).", where=readable_name(folder), fix="Check the path."
        ) from failure
    walked = Walked()
    waiting: list[tuple[Path, int]] = [(folder, 0)]
    while waiting:
        current, depth = waiting.pop()
        walked.folders[current] = stamp_of(current)
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            walked.names[current] = _names_of(entries)
        except OSError as failure:
            message = f"The folder {_below(current, folder)} cannot be read ({failure.strerror})."
            walked.problems.append(warning("folder_unreadable", message, "Change its permissions."))
            continue
        for entry in entries:
            if is_hidden_name(entry.name):
                continue
            _take(entry, depth, folder, root, walked, waiting)
        if len(walked.files) > MAX_FILES:
            raise DatasetError(
                f"There are more than {MAX_FILES:,} files in this folder.",
                where=readable_name(folder),
                fix="Choose the folder that holds the pictures, not one far above it.",
            )
    return walked


def _take(
    entry: os.DirEntry[str], depth: int, folder: Path, root: Path, walked: Walked, waiting: list[tuple[Path, int]]
) -> None:
    path = Path(entry.path)
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:
        message = f"The name of {_below(path, folder)} is not valid text, so it is passed over."
        walked.problems.append(warning("name", message, "Rename it."))
        return
    if entry.is_symlink():
        problem = _problem_of_link(path, _below(path, folder), root)
        if problem is not None:
            walked.problems.append(problem)
            return
        if path.is_dir():
            return  # it is inside, so it is found where it really is
    if entry.is_dir(follow_symlinks=False):
        if depth >= MAX_DEPTH:
            message = f"The folder {_below(path, folder)} lies too deep and was not looked into."
            walked.problems.append(warning("too_deep", message, "Move its pictures up."))
        else:
            waiting.append((path, depth + 1))
    elif path.suffix.lower() in (".zip", ".7z", ".rar"):
        walked.problems.append(
            warning("archive", f"The archive {_below(path, folder)} was not opened.", "Import it on its own.")
        )
    else:
        walked.files.append(path)


def _problem_of_link(path: Path, shown: str, root: Path) -> Problem | None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return warning("dangling", f"The link {shown} leads nowhere.", "Remove it, or put the file there.")
    if not target.is_relative_to(root):
        return warning(
            "outside", f"The link {shown} leads out of the folder and is not followed.", "Copy the file itself here."
        )
    return None


def _below(path: Path, folder: Path) -> str:
    return readable_name(path.relative_to(folder))
