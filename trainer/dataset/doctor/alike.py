"""Groups of pictures that show the same, remembered: leaving some pictures out must not compare all of them anew."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trainer.dataset.doctor import similar
from trainer.dataset.doctor.measures import Measures

_KEPT = 4
_lock = threading.Lock()
_known: list[tuple[frozenset[str], tuple[frozenset[str], ...]]] = []
"""Files that were compared, and the groups among them, by SHA-256; newest last."""


def alike(sha256: Sequence[str], measures: Sequence[Measures]) -> list[tuple[int, ...]]:
    """As `trainer.dataset.doctor.similar.groups`, of pictures whose files have these SHA-256."""
    files = frozenset(sha256)
    with _lock:
        known = next((groups for compared, groups in reversed(_known) if files <= compared), None)
    if known is not None:
        # A group may fall apart when one is left out that was like two others; two groups never become one.
        return sorted(part for group in known for part in _within(group, sha256, measures))
    found = similar.groups(measures)
    with _lock:
        _known.append((files, tuple(frozenset(sha256[index] for index in group) for group in found)))
        del _known[:-_KEPT]
    return found


def _within(group: frozenset[str], sha256: Sequence[str], measures: Sequence[Measures]) -> list[tuple[int, ...]]:
    places = [index for index, each in enumerate(sha256) if each in group]
    return [tuple(places[i] for i in part) for part in similar.groups([measures[index] for index in places])]
