"""Changes of a data set, and what its runs were trained on, as the History section shows them. Knows no widgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.config.loading import build_restore_config
from trainer.dataset.bring_job import start_restoring
from trainer.dataset.history import State, state_at_change
from trainer.dataset.record import EXCLUDED, load_state
from trainer.dataset.restoring import Restored, restore_in_place, version_of_run
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import (
    FILE_NAME,
    DatasetVersion,
    Difference,
    current_version,
    differences,
    edit_difference,
)
from trainer.errors import DatasetError, RunError
from trainer.paths import DataFolder
from trainer.runs import list_runs

log = logging.getLogger(__name__)
_MAX_CHANGES, _MAX_RUNS = 300, 100


@dataclass(frozen=True)
class ChangeRow:
    """A state in the list: after the first `position` changes. `at` is in seconds since 1970, None for the first state."""

    position: int
    title: str
    at: float | None
    is_current: bool
    is_undone: bool


class DatasetHistoryService:
    """Earlier states of data sets."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self.store = DatasetStore(data)

    def changes(self, name: str) -> list[ChangeRow]:
        """The states of a data set, newest first; the latest few hundred. Raises DatasetError."""
        changes, now = self.store.history(name)
        rows = [ChangeRow(0, "As it was at first", None, now == 0, False)]
        for position, change in enumerate(changes, start=1):
            rows.append(ChangeRow(position, change.title, change.at, position == now, position > now))
        return rows[::-1][:_MAX_CHANGES]

    def runs(self, name: str) -> list[tuple[str, str]]:
        """(label, id) of the runs that were trained on a data set and wrote down its state, newest first."""
        info = self.store.get(name)
        names = {info.name, str(info.folder)}
        found: list[tuple[str, str]] = []
        for run in list_runs(self._data):
            if not (run.folder / FILE_NAME).exists():
                continue
            try:
                data = run.config()["data"]
                used = [data["dataset"], data["prior"]["dataset"], *(one["dataset"] for one in data["concepts"])]
                if names & set(used):
                    found.append((f"{run.info().title} · {run.id}", run.id))
            except (RunError, KeyError, TypeError):
                log.warning("The settings of %s cannot be read", run.folder, exc_info=True)
            if len(found) == _MAX_RUNS:
                break
        return found

    def go_to(self, name: str, position: int) -> None:
        """Undo or redo up to a state of the list. Raises DatasetError."""
        self.store.step_to(name, position)

    def since_change(self, name: str, position: int) -> list[Difference]:
        """What differs between a state of the list and today's. Raises DatasetError."""
        info = self.store.get(name)
        if info.record is None:
            raise DatasetError("This folder has no history.", where=info.title)
        state = load_state(info.record)
        before = state_at_change(state, info.record, position)
        return _document_differences(before, state)

    def since_run(self, name: str, run_id: str) -> tuple[DatasetVersion, list[Difference]]:
        """The state that a run was trained on, and what differs today. Raises DatasetError, RunError."""
        version = self._version(name, run_id)
        return version, differences(version, current_version(self.store, name))

    def restore_run(self, name: str, run_id: str) -> Restored:
        """Make that state today's, as a change that can be undone. Raises DatasetError, RunError."""
        return restore_in_place(self.store, self._version(name, run_id), f"Back to the state of the run {run_id}")

    def copy_run(self, name: str, run_id: str, new_name: str) -> str:
        """Begin to make a data set of its own of that state. Returns the job's id. Raises ConfigError, DatasetError, RunError."""
        self.store.new_name(new_name)  # with its own sentence where there is none
        values = {"dataset": name, "run": run_id, "new_name": new_name}
        return start_restoring(self._data, build_restore_config(values)).id

    def _version(self, name: str, run_id: str) -> DatasetVersion:
        return version_of_run(self.store, self._data, name, run_id)


def _document_differences(before: State, after: State) -> list[Difference]:
    found: list[Difference] = []
    kinds: dict[str, Literal["caption", "setting"]] = {"captions": "caption", "settings": "setting"}
    for document in sorted({*before, *after}):
        was, now = before.get(document, {}), after.get(document, {})
        for key in sorted({*was, *now}):
            if was.get(key) == now.get(key):
                continue
            if document == EXCLUDED:
                found.append(Difference("removed" if key in now else "added", key))
            elif document in kinds:
                found.append(Difference(kinds[document], key, str(was.get(key) or ""), str(now.get(key) or "")))
            else:
                found.append(edit_difference(document, key, was.get(key), now.get(key)))
    return found


def summary(found: Sequence[Difference]) -> str:
    """Such as "3 things differ from today"."""
    if not found:
        return "Nothing differs from today."
    return "1 thing differs from today." if len(found) == 1 else f"{len(found)} things differ from today."
