"""The files of a folder and the folders in it: no hidden ones, nothing outside by way of links."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from trainer.dataset.problems import Problem, warning
from trainer.errors import DatasetError

MAX_DEPTH = 32
MAX_FILES = 200_000
_HIDDEN_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"}


@dataclass
class Walked:
    """Files found (real ones, inside the folder), and what was passed over for a reason."""

    files: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_hidden_name(name: str) -> bool:
    """Whether a file or folder belongs to a system or a program: `.DS_Store`, `._photo.jpg`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in _HIDDEN_NAMES


def readable_name(path: Path | str) -> str:
    """A path that can be shown and written as UTF-8, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", errors="replace")


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
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
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
