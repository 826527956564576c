"""The history of a data set's record: every change can be undone and done again, across restarts.

A record is a few documents of keys and values (`trainer.dataset.record.DOCUMENTS`). A change says what each value was and what it
became, so that any earlier state follows from today's by walking back: nothing is stored twice.

`history.jsonl` has a line a change, and `history.json` says how many of them are in force: those after it were undone, and
the next new change takes their place. The line is written before the documents: a change that was cut off halfway is still one to do again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DatasetError
from trainer.files import disk_errors, write_bytes, write_json

State = dict[str, dict[str, Any]]
"""Documents by name; a value of None is the same as none."""


@dataclass(frozen=True)
class Patch:
    """One value that changed, with None for none."""

    document: str
    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Change:
    """One thing that the user did. `at` is in seconds since 1970."""

    title: str
    at: float
    patches: tuple[Patch, ...]


class History:
    """The changes of one record. Whoever writes holds the record's lock (`trainer.dataset.record.locked`)."""

    def __init__(self, folder: Path) -> None:
        self._lines = folder / "history.jsonl"
        self._mark = folder / "history.json"

    def changes(self) -> list[Change]:
        """All changes, oldest first, those that were undone too."""
        return [_parsed(line) for line in self._whole_lines()]

    def change(self, index: int) -> Change | None:
        """One of them, from 0; None where there are fewer."""
        lines = self._whole_lines()
        return _parsed(lines[index]) if 0 <= index < len(lines) else None

    def _whole_lines(self) -> list[bytes]:
        # The last line has no end where the machine went down while it was written.
        return [line for line in self._read().splitlines(keepends=True) if line.endswith(b"\n")]

    def _read(self) -> bytes:
        try:
            return self._lines.read_bytes()
        except FileNotFoundError:
            return b""

    def position(self) -> int:
        """How many of the changes are in force."""
        try:
            return int(json.loads(self._mark.read_text(encoding="utf-8"))["position"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return 0

    def begin(self, change: Change) -> int:
        """Write a new change down in the place of those that were undone; returns the position to `settle` on afterwards."""
        line = (json.dumps(asdict(change), ensure_ascii=False) + "\n").encode()
        kept = self._whole_lines()[: self.position()]
        if sum(map(len, kept)) == len(self._read()):
            with disk_errors(self._lines, "the data set's history"), self._lines.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        else:
            write_bytes(self._lines, b"".join([*kept, line]), "the data set's history")
        return len(kept) + 1

    def settle(self, position: int) -> None:
        """Say how many changes are in force."""
        write_json(self._mark, {"position": position}, "the data set's history")


def _parsed(line: bytes) -> Change:
    data = json.loads(line)
    return Change(str(data["title"]), float(data["at"]), tuple(Patch(**patch) for patch in data["patches"]))


def changed(state: State, title: str, values: Mapping[tuple[str, str], Any]) -> Change | None:
    """The change that sets values, by (document, key); None where all of them are so already."""
    patches = tuple(
        Patch(document, key, state.get(document, {}).get(key), value)
        for (document, key), value in values.items()
        if state.get(document, {}).get(key) != value
    )
    return Change(title, time.time(), patches) if patches else None


def apply(state: State, patches: Sequence[Patch]) -> State:
    """The state after patches."""
    result = {name: dict(document) for name, document in state.items()}
    for patch in patches:
        document = result.setdefault(patch.document, {})
        if patch.after is None:
            document.pop(patch.key, None)
        else:
            document[patch.key] = patch.after
    return result


def reverse(patches: Sequence[Patch]) -> tuple[Patch, ...]:
    """The patches that take others back."""
    return tuple(Patch(patch.document, patch.key, patch.after, patch.before) for patch in reversed(patches))


def state_at(state: State, history: History, position: int) -> State:
    """The state after the first `position` changes, from today's.

    Raises: DatasetError: there are fewer changes.
    """
    changes, now = history.changes(), history.position()
    if not 0 <= position <= len(changes):
        raise DatasetError("The data set has no such earlier state.", fix="Reload the page.")
    for change in reversed(changes[position:now]):
        state = apply(state, reverse(change.patches))
    for change in changes[now:position]:
        state = apply(state, change.patches)
    return state


def state_at_change(state: State, folder: Path, position: int) -> State:
    """`state_at` of the record in `folder`."""
    return state_at(state, History(folder), position)


def difference(before: State, after: State) -> tuple[Patch, ...]:
    """What leads from one state to another, sorted."""
    keys = {(name, key) for state in (before, after) for name, document in state.items() for key in document}
    patches = (
        Patch(name, key, before.get(name, {}).get(key), after.get(name, {}).get(key)) for name, key in sorted(keys)
    )
    return tuple(patch for patch in patches if patch.before != patch.after)
