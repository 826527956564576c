"""Folders as kohya's scripts want them: `10_zib robot` holds pictures that are shown 10 times, with that name as their caption."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.dataset.caption_sources import is_table_name
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.record import CLASS_PICTURES
from trainer.dataset.walk import readable_name, walk_folder
from trainer.errors import DatasetError, Finding

_NAME = re.compile(r"(\d{1,4})_(.+)")
_MAX_REPEATS = 1000
# No year and no date: repeats are neither that high, nor written with a zero in front.
_LAYOUT_NAME = re.compile(r"([1-9]\d{0,2}|1000)_(.+)")
_CLASS_FOLDERS = {"reg", "reg_images", "regularization", "regularisation", "class", "class_images", "class_pictures"}
_OUTPUT_FOLDERS = {"model", "models", "sample", "samples", "log", "logs", "output"}


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
            return {"role": CLASS_PICTURES, "instance_prompt": self.caption}
        return {"repeats": self.repeats, "instance_prompt": self.caption}

    def settings(self) -> dict[str, str | int]:
        """It as the settings of a concept."""
        return {"dataset": str(self.path), "repeats": self.repeats, "instance_prompt": self.caption}


def is_kohya_name(name: str) -> bool:
    """Whether a folder is named like `10_zib robot`."""
    return _LAYOUT_NAME.fullmatch(name) is not None


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


@dataclass(frozen=True)
class KohyaLayout:
    """The concepts in a folder that is laid out for kohya's scripts, none in another; and what in it is no part of them."""

    concepts: tuple[KohyaFolder, ...] = ()
    left_out: tuple[Finding, ...] = ()


def kohya_layout(folder: Path) -> KohyaLayout:
    """The concepts in a folder or, where their program was given `img` and `reg` in it, in those.

    Only where every picture lies in such folders: among others, `2_sketches` or `2023_holiday` is a name like any. What the
    scripts themselves put beside `img` (`model`, `sample`, `log`) does not count, and is named as left out.

    Raises: DatasetError: the folder cannot be read.
    """
    concepts: dict[Path, KohyaFolder] = {}
    left_out: list[Finding] = []
    for path in walk_folder(folder).files:
        parts = path.relative_to(folder).parts
        concept = _concept_of(folder, parts)
        if concept is not None:
            if is_picture_name(path):
                concepts.setdefault(concept.path, concept)
        elif is_table_name(path.name):
            left_out.append(Finding("/".join(parts), "is a table of captions outside the numbered folders"))
        elif is_picture_name(path):
            if parts[0].casefold() not in _OUTPUT_FOLDERS or len(parts) == 1:
                return KohyaLayout()
            left_out.append(Finding("/".join(parts), "lies outside the numbered folders"))
    return (
        KohyaLayout(tuple(concepts[path] for path in sorted(concepts)), tuple(left_out)) if concepts else KohyaLayout()
    )


def _concept_of(folder: Path, parts: tuple[str, ...]) -> KohyaFolder | None:
    """The concept that a file belongs to, by the names of the folders that it lies in; of those, the outermost."""
    own = _LAYOUT_NAME.fullmatch(folder.name)
    if own is not None:
        # The numbered folder itself was chosen, and not the one around it.
        is_class = folder.parent.name.casefold() in _CLASS_FOLDERS
        return KohyaFolder(folder, int(own[1]), " ".join(own[2].split()), is_class)
    for depth, name in enumerate(parts[:-1][:2]):
        match = _LAYOUT_NAME.fullmatch(name)
        if match is not None:
            around = parts[0] if depth else folder.name
            caption = " ".join(match[2].split())
            path = folder.joinpath(*parts[: depth + 1])
            return KohyaFolder(path, int(match[1]), caption, around.casefold() in _CLASS_FOLDERS)
    return None


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
