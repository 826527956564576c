"""Groups of pictures that show the same, remembered: leaving some pictures out must not compare all of them anew."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trainer.dataset.doctor import similar
from trainer.dataset.doctor.measures import Measures

_KEPT = 4
_lock = threading.Lock()
_known: list[tuple[frozenset[str], tuple[frozenset[str], ...]]] = []
"""Pictures that were compared, and the groups among them, by what is seen of them (`PictureFacts.content`); newest last."""


def alike(contents: Sequence[str], measures: Sequence[Measures]) -> list[tuple[int, ...]]:
    """As `trainer.dataset.doctor.similar.groups`, of pictures that are known by these names of their contents."""
    files = frozenset(contents)
    with _lock:
        known = next((groups for compared, groups in reversed(_known) if files <= compared), None)
    if known is not None:
        # A group may fall apart when one is left out that was like two others; two groups never become one.
        return sorted(part for group in known for part in _within(group, contents, measures))
    found = similar.groups(measures)
    with _lock:
        _known.append((files, tuple(frozenset(contents[index] for index in group) for group in found)))
        del _known[:-_KEPT]
    return found


def _within(group: frozenset[str], contents: Sequence[str], measures: Sequence[Measures]) -> list[tuple[int, ...]]:
    places = [index for index, each in enumerate(contents) if each in group]
    return [tuple(places[i] for i in part) for part in similar.groups([measures[index] for index in places])]
