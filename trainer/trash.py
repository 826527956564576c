"""The trash folder of a data folder: what is deleted is moved there, all of it or nothing. No torch."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.files import disk_errors, safe_name, unused_path, write_json
from trainer.paths import DataFolder

log = logging.getLogger(__name__)


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


def trash_records(data: DataFolder, file_name: str) -> list[tuple[str, Path, float]]:
    """What was moved to the trash with a record of this file name, the last first: its name, its folder there, and when.

    Whether it still lies there is to be looked at: it may have been taken out by hand.
    """
    found: list[tuple[str, Path, float]] = []
    for path in data.trash.glob(f"*/{file_name}"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(content["name"]), path.parent, float(content["deleted"])))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("A record in the trash cannot be read: %s", path)
    return sorted(found, key=lambda record: -record[2])
