"""The trash folder of a data folder: what is deleted is moved there, all of it or nothing. No torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.files import disk_errors, safe_name, unused_path, write_json
from trainer.paths import DataFolder


def move_to_trash(
    data: DataFolder, kind: str, files: Sequence[Path], what: str, record: tuple[str, dict[str, Any]] | None = None
) -> Path:
    """Move files into a folder of their own in the trash; where one of them cannot be moved, all are where they were.

    Args:
        data: whose trash.
        kind: the first word of the folder's name; the first file's name follows, cut to what every system takes.
        files: at least one.
        what: for messages, such as "the picture".
        record: a JSON file that is put beside them: its name, and what is in it.

    Returns: the folder.
    Raises: ResourceError: the disk is full, or the files cannot be moved. OSError.
    """
    name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{safe_name(files[0].stem, kind)}"
    folder = unused_path(data.trash / name)
    folder.mkdir(parents=True)
    moved: list[Path] = []
    try:
        if record is not None:
            write_json(folder / record[0], record[1], what)
        with disk_errors(folder, what):
            for file in files:
                shutil.move(file, folder / file.name)
                moved.append(file)
    except BaseException:
        for file in moved:
            shutil.move(folder / file.name, file)
        # A move between disks is a copy first: what lies there now lies here, too.
        if all(file.is_file() for file in files):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
