"""Files and samples of weights that a run no longer has, because it went back: kept, under names that say so.

In their old places they would pass for what the run learned, and keep what it learns instead from being written there.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from trainer.errors import InkwashError
from trainer.events import LoraExported, read_events
from trainer.files import file_sha256, unused_path
from trainer.library import SUFFIX, rename_lora
from trainer.paths import DataFolder
from trainer.runs import Run

log = logging.getLogger(__name__)
MARK = "given up"
_STEP = re.compile(r"step-?(\d{6})(?!.*step-?\d{6})")


def set_aside(run: Run, data: DataFolder, step: int) -> None:
    """Put `given up` into the names of samples and LoRA files of later steps than `step`, in the run and in the library.

    A file in the library that was renamed or changed there since is left as it is. What is kept at the run's end has no step
    in its name and stays: a run that is over does not go back.
    """
    _rename_in_library(run, data, step)
    for folder in (run.lora, run.samples):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and not path.name.startswith(".") and _step_of(path) > step:
                path.rename(unused_path(path.with_name(f"{path.stem} {MARK}{path.suffix}")))


def _step_of(path: Path) -> int:
    """The step in a file's name; -1 where there is none, or it is marked already."""
    found = None if MARK in path.stem else _STEP.search(path.stem)
    return int(found[1]) if found else -1


def _rename_in_library(run: Run, data: DataFolder, step: int) -> None:
    for event in read_events(run.events_path):
        if not isinstance(event, LoraExported) or event.step <= step:
            continue
        ours, theirs = run.folder / event.path, Path(event.library_path)
        if _step_of(ours) <= step or not ours.exists() or not theirs.exists():
            continue
        try:
            if file_sha256(ours) == file_sha256(theirs):
                target = unused_path(theirs.with_name(f"{theirs.stem} {MARK}{SUFFIX}"))
                rename_lora(data, theirs.relative_to(data.loras).with_suffix("").as_posix(), target.stem)
        except (InkwashError, OSError, ValueError):
            # The run is what matters; the file is only less well named.
            log.warning("%s could not be renamed", theirs, exc_info=True)
