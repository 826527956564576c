"""Folders as kohya's scripts want them: `10_zib robot` holds pictures that are shown 10 times, with that name as their caption."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.dataset.record import CLASS_PICTURES
from trainer.dataset.walk import is_hidden_name, readable_name, walk_folder
from trainer.errors import DatasetError

_NAME = re.compile(r"(\d{1,4})_(.+)")
_MAX_REPEATS = 1000
_CLASS_FOLDERS = {"reg", "reg_images", "regularization", "regularisation", "class", "class_images", "class_pictures"}


@dataclass(frozen=True)
class KohyaFolder:
    """One concept: its folder, how often each picture is shown, and the caption of pictures that have none."""

    path: Path
    repeats: int
    caption: str
    is_class: bool = False
    """Whether it holds class pictures: it lies in a folder such as `reg`."""

    def training(self) -> dict[str, Any]:
        """It as settings of a data set's record."""
        if self.is_class:
            return {"role": CLASS_PICTURES, "class_prompt": self.caption}
        return {"repeats": self.repeats, "instance_prompt": self.caption}

    def settings(self) -> dict[str, str | int]:
        """It as the settings of a concept."""
        return {"dataset": str(self.path), "repeats": self.repeats, "instance_prompt": self.caption}


def is_kohya_name(name: str) -> bool:
    """Whether a folder is named like `10_zib robot`."""
    return _NAME.fullmatch(name) is not None


def kohya_folders(folder: Path) -> list[KohyaFolder]:
    """The concepts in a folder; empty where it is not laid out like that."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []
    named = [(path, match) for path in inside if (match := _NAME.fullmatch(path.name))]
    return [
        KohyaFolder(path, min(int(match[1]), _MAX_REPEATS), " ".join(match[2].split()))
        for path, match in named
        if int(match[1]) > 0 and walk_folder(path).files
    ]


def kohya_layout(folder: Path) -> list[KohyaFolder]:
    """The concepts in a folder or, where their program was given `img` and `reg` in it, in those; empty for another layout."""
    found = kohya_folders(folder)
    if found:
        is_class = folder.name.casefold() in _CLASS_FOLDERS
        return [replace(one, is_class=is_class) for one in found]
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden_name(path.name))
    except OSError:
        return []
    return [
        replace(one, is_class=path.name.casefold() in _CLASS_FOLDERS) for path in inside for one in kohya_folders(path)
    ]


def require_kohya_folders(folder: Path) -> list[KohyaFolder]:
    """The same. Raises DatasetError where there are none."""
    found = kohya_folders(folder.expanduser())
    if not found:
        raise DatasetError(
            "There is no folder named like '10_zib robot' in this folder.",
            where=readable_name(folder),
            fix="Choose the folder that holds such folders; a folder of pictures is given with --dataset.",
        )
    return found
