"""What lies in a folder, remembered while nothing changes: a folder of thousands of pictures is not walked anew on each click.

A process keeps what it saw, and asks the file system each time whether it still holds: a folder's own times change when a file in it comes,
goes or is renamed, a file's size and times when it is written. So several processes may look and change at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from trainer.dataset.caption_sources import is_table_name
from trainer.dataset.captions import caption_files
from trainer.dataset.masks import Sorted, sort_masks
from trainer.dataset.problems import Problem
from trainer.dataset.walk import Stamp, name_below, names_in, stamp_of, walk_folder

Value = TypeVar("Value")
_MAX_FILES = 100_000
"""Files remembered in all, about 50 MB of names."""


class Remembered(Generic[Value]):
    """The latest values by key, no more than `max_weight` in all."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        """What was kept for the key."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def keep(self, key: str, value: Value, weight: int) -> None:
        """Keep a value, and drop those that were not used for longest."""
        with self._lock:
            self._values[key] = (value, weight)
            self._values.move_to_end(key)
            while len(self._values) > 1 and sum(weight for _, weight in self._values.values()) > self._max_weight:
                self._values.popitem(last=False)


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted into pictures and masks, and what was passed over."""

    folder: Path
    files: tuple[Path, ...]
    sorted: Sorted
    problems: tuple[Problem, ...]
    names: frozenset[str]
    """Names of the pictures, below the folder with `/`."""
    captions: dict[Path, Path]
    """The caption file of each picture that has one."""
    folders: dict[Path, Stamp | None]
    entries: dict[Path, tuple[str, ...]]

    def is_current(self) -> bool:
        """Whether the same files are still there.

        A data set's record lies among its pictures, so its folder changes with every caption that is written: then the names tell.
        """
        for folder, stamp in self.folders.items():
            now = stamp_of(folder)
            if stamp is not None and now == stamp:
                continue
            if names_in(folder) != self.entries.get(folder):
                return False
            self.folders[folder] = now
        return True

    def stamp(self) -> tuple[Stamp, ...] | None:
        """Sizes and times of all files that a scan reads; None where one is gone, or so young that a change might not show."""
        stamps: list[Stamp] = []
        tables = (path for path in self.files if is_table_name(path.name))
        for path in (*self.sorted.pictures, *self.sorted.masks.values(), *self.captions.values(), *tables):
            stamp = stamp_of(path)
            if stamp is None:
                return None
            stamps.append(stamp)
        return tuple(stamps)


_listings: Remembered[Listing] = Remembered(_MAX_FILES)


def list_folder(folder: Path) -> Listing:
    """The files of a folder and the folders in it. Raises DatasetError where it cannot be read."""
    known = _listings.get(str(folder))
    if known is not None and known.is_current():
        return known
    walked = walk_folder(folder)
    named = sort_masks(walked.files)
    beside: dict[Path, set[str]] = defaultdict(set)
    for path in walked.files:
        beside[path.parent].add(path.name)
    captions = {path: found[0] for path in named.pictures if (found := caption_files(path, beside[path.parent]))}
    names = frozenset(name_below(path, folder) for path in named.pictures)
    listing = Listing(
        folder, tuple(walked.files), named, tuple(walked.problems), names, captions, walked.folders, walked.names
    )
    _listings.keep(str(folder), listing, len(walked.files))
    return listing
