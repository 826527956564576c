"""Masks of pictures: which file beside a picture says where its subject is, by the conventions of other programs.

White is the subject, black the background. `cat.png` has its mask in `cat-masklabel.png`, in `cat.mask.png`, or under its own
name in the folder `masks` beside it. A mask that is transparent somewhere is read by its alpha channel.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.dataset.pictures import is_picture_name, open_coverage
from trainer.dataset.problems import Problem, warning
from trainer.dataset.turns import turned

MASK_ENDINGS = ("-masklabel", ".mask")
MASK_FOLDER = "masks"
_TOLERANCE = 0.02


@dataclass(frozen=True)
class MaskFacts:
    """A mask: its file, what is in it, its size in px as it is used, and by how much it is turned along with its picture."""

    path: Path
    sha256: str
    width: int
    height: int
    turn: int = 0

    def coverage(self) -> Image.Image:
        """The mask as it lies on its picture, grey. Raises DatasetError: it cannot be read."""
        return turned(open_coverage(self.path), self.turn)


@dataclass(frozen=True)
class Sorted:
    """The files of a folder that are pictures by their names, the mask of each that has one, and masks of none."""

    pictures: tuple[Path, ...]
    masks: dict[Path, Path]
    orphans: tuple[Path, ...]


def sort_masks(files: Sequence[Path]) -> Sorted:
    """Tell masks from pictures, by their names alone."""
    named = [path for path in files if is_picture_name(path)]
    of_stem: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in named:
        of_stem[path.parent, path.stem.casefold()].append(path)
    masks: dict[Path, Path] = {}
    orphans: list[Path] = []
    in_folders: dict[Path, list[Path]] = defaultdict(list)
    # The endings in order: what comes first wins where a picture has several masks.
    for ending in MASK_ENDINGS:
        for path in named:
            if path.stem.casefold().endswith(ending):
                subject = path.stem[: -len(ending)].casefold()
                pictures = of_stem.get((path.parent, subject), [])
                orphans += [] if pictures else [path]
                for picture in pictures:
                    masks.setdefault(picture, path)
    is_mask = {path for path in named if path.stem.casefold().endswith(MASK_ENDINGS)}
    for path in named:
        if path.parent.name.casefold() == MASK_FOLDER and path not in is_mask:
            in_folders[path.parent].append(path)
    for folder, found in in_folders.items():
        matched = {path: of_stem.get((folder.parent, path.stem.casefold()), []) for path in found}
        # A folder of carnival masks is a folder of pictures: only where one has a partner outside are they masks.
        if not any(matched.values()):
            continue
        is_mask |= set(found)
        for path, pictures in matched.items():
            orphans += [] if pictures else [path]
            for picture in pictures:
                masks.setdefault(picture, path)
    return Sorted(tuple(path for path in named if path not in is_mask), masks, tuple(orphans))


def shape_problem(name: str, mask: tuple[int, int], picture: tuple[int, int]) -> Problem | None:
    """What is wrong with the size of a mask; one of the same shape is scaled, another would lie beside the subject."""
    ratio = math.log(mask[0] / mask[1]) - math.log(picture[0] / picture[1])
    if abs(ratio) <= _TOLERANCE:
        return None
    sizes = f"{mask[0]}×{mask[1]}, the picture is {picture[0]}×{picture[1]}"
    return warning("mask_shape", f"The mask {name} has another shape: it is {sizes}.", "Save it in the picture's size.")
