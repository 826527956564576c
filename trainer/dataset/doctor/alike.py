"""Groups of pictures that show the same, remembered on the disk: what the check compared must nobody compare anew.

Comparing takes long where many pictures are nearly the same, so it is the check's job that does it, with progress; who only
shows what was found takes the groups from here.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.doctor import similar
from trainer.dataset.doctor.measures import VERSION, Measures
from trainer.files import write_json

log = logging.getLogger(__name__)
_KEPT = 4
_EXACT = 200
_VERSION = [VERSION, similar.VERSION]


@dataclass(frozen=True)
class _Compared:
    """Pictures that were compared with one another, by `_keys`, and the groups among them."""

    keys: frozenset[str]
    groups: tuple[frozenset[str], ...]


class Alike:
    """What was compared in one data set; `path` is a JSON file, which need not be there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)
        """Newest last."""

    def compared(self, contents: Sequence[str]) -> list[bool]:
        """Which pictures, by what is seen of them (`PictureFacts.content`), were compared with one another."""
        keys = _keys(contents)
        most = max((each.keys for each in reversed(self._known)), key=lambda known: len(known & set(keys)), default=())
        return [key in most for key in keys]

    def groups(
        self, contents: Sequence[str], measures: Sequence[Measures], progress: similar.Progress | None = None
    ) -> list[tuple[int, ...]]:
        """As `trainer.dataset.doctor.similar.groups`; pictures that were not compared are, and that is written down.

        Of a group of more than 200 that has lost a picture, all others still count as showing the same until the next comparison.

        Raises: ResourceError: the disk is full. And whatever `progress` raises.
        """
        keys = _keys(contents)
        if not keys:
            return []
        known = next((each for each in reversed(self._known) if each.keys.issuperset(keys)), None)
        if known is not None:
            # A group may fall apart when one is left out that was like two others; two groups never become one.
            return sorted(part for group in known.groups for part in _within(group, keys, measures))
        found = similar.groups(measures, progress)
        groups = tuple(frozenset(keys[index] for index in group) for group in found)
        self._known = [*self._known, _Compared(frozenset(keys), groups)][-_KEPT:]
        self._save()
        return found

    def _save(self) -> None:
        entries = [
            {"keys": sorted(each.keys), "groups": [sorted(group) for group in each.groups]} for each in self._known
        ]
        write_json(self._path, {"version": _VERSION, "compared": entries}, "what was compared")


def _load(path: Path) -> list[_Compared]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            return []
        return [_Compared(frozenset(one["keys"]), tuple(map(frozenset, one["groups"]))) for one in data["compared"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s cannot be read; the pictures are compared again", path, exc_info=True)
        return []


def _keys(contents: Sequence[str]) -> list[str]:
    """A name for each picture: its content, with a number where others before it have the same."""
    seen = Counter[str]()
    keys = []
    for content in contents:
        seen[content] += 1
        keys.append(content if seen[content] == 1 else f"{content} {seen[content]}")
    return keys


def _within(group: frozenset[str], keys: Sequence[str], measures: Sequence[Measures]) -> list[tuple[int, ...]]:
    places = tuple(index for index, key in enumerate(keys) if key in group)
    if len(places) == len(group) or len(places) > _EXACT:
        return [places]
    return [tuple(places[i] for i in part) for part in similar.groups([measures[index] for index in places])]
