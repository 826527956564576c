"""A data set's record: what the user says about it, kept in the data folder and never beside pictures that are not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.dataset.history import State
from trainer.errors import DatasetError, RunError
from trainer.files import write_json
from trainer.locks import FileLock
from trainer.progress import Progress

Origin = Literal["own", "linked", "bundled"]
SETTINGS, CAPTIONS, EXCLUDED, IGNORED, CROPS, MASKS, BACKGROUNDS, TURNS = DOCUMENTS = (
    *("settings", "captions", "excluded"),
    *("ignored", "crops", "masks", "backgrounds", "turns"),
)
"""Documents of a record whose changes can be undone: what holds for the set; captions, and what is left out, by picture name; what the
check found and the user finds right as it is, by finding; crops as (left, top, right, bottom) in px of the upright picture as its
file has it, masks as `trainer.dataset.painted.MaskEntry`, colours of filled backgrounds, and turns in degrees clockwise, by picture name."""
OF_PICTURES = (CAPTIONS, EXCLUDED, CROPS, MASKS, BACKGROUNDS, TURNS)
"""Those of them that are about single pictures, by their names."""
_SETTINGS = ("title", "kind", "trigger_word", "class_prompt", "role", "repeats", "weight", "instance_prompt")
CLASS_PICTURES = "class_pictures"
"""The role of a data set that shows what a class looks like, for prior preservation (kohya: regularisation images)."""


class Record(BaseModel):
    """What stands in `dataset.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    origin: Origin = "own"
    folder: str = ""
    """Of a linked data set: where its pictures are."""
    title: str = ""
    kind: str = ""
    trigger_word: str | None = None
    class_prompt: str | None = None
    role: str | None = None
    """`CLASS_PICTURES`, or nothing for pictures to learn from."""
    repeats: int | None = None
    weight: float | None = None
    instance_prompt: str | None = None
    """What the Train form sets when this data set is chosen, as the settings of a concept."""
    excluded: tuple[str, ...] = ()
    """Names of pictures that are left out, where they are not ours to remove."""
    ignored: tuple[str, ...] = ()
    """Findings of the check that are not shown any more, by their key."""
    crops: dict[str, tuple[int, int, int, int]] = {}
    """The part of a picture that counts, by its name."""
    masks: dict[str, tuple[str, int, int]] = {}
    """Masks that were painted or made here, by picture name: see `trainer.dataset.painted`."""
    backgrounds: dict[str, str] = {}
    """Colours that backgrounds are filled with, by picture name."""
    turns: dict[str, Literal[90, 180, 270]] = {}
    """By how many degrees pictures are turned clockwise, by name."""


def load_record(folder: Path) -> Record:
    """The record in `folder`; an empty one where there is none.

    Raises: DatasetError: it cannot be read. It is not replaced: it may be all that is left of the user's work.
    """
    path = folder / "dataset.json"
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Record()
    except (OSError, ValidationError, ValueError) as failure:
        raise _damaged(path) from failure


def save_record(folder: Path, record: Record) -> None:
    """Write the record."""
    write_json(folder / "dataset.json", record.model_dump(), "the data set's settings")


def load_captions(folder: Path) -> dict[str, str]:
    """Captions written in the app, by picture name, several one a line; an empty one means: none. Raises DatasetError."""
    path = folder / "captions.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as failure:
        raise _damaged(path) from failure
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise _damaged(path)
    return data


def save_captions(folder: Path, captions: dict[str, str]) -> None:
    """Write the captions."""
    write_json(folder / "captions.json", captions, "the captions")


def load_state(folder: Path) -> State:
    """The record as documents, for its history. Raises DatasetError."""
    record = load_record(folder)
    settings = {name: value for name in _SETTINGS if (value := getattr(record, name)) is not None}
    return {
        SETTINGS: settings,
        CAPTIONS: dict(load_captions(folder)),
        EXCLUDED: dict.fromkeys(record.excluded, True),
        IGNORED: dict.fromkeys(record.ignored, True),
        CROPS: {name: list(box) for name, box in record.crops.items()},
        MASKS: {name: list(entry) for name, entry in record.masks.items()},
        BACKGROUNDS: dict(record.backgrounds),
        TURNS: dict(record.turns),
    }


def save_state(folder: Path, state: State) -> None:
    """Write a record's documents where they differ from what is there."""
    if state[CAPTIONS] != load_captions(folder):
        save_captions(folder, state[CAPTIONS])
    record = load_record(folder)
    settings = {name: state[SETTINGS].get(name, Record.model_fields[name].default) for name in _SETTINGS}
    lists = {"excluded": tuple(state[EXCLUDED]), "ignored": tuple(state.get(IGNORED, ()))}
    edits = {key: {name: tuple(value) for name, value in state.get(key, {}).items()} for key in (CROPS, MASKS)}
    edits |= {key: dict(state.get(key, {})) for key in (BACKGROUNDS, TURNS)}
    changed = record.model_copy(update={**settings, **lists, **edits})
    if changed != record:
        save_record(folder, changed)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a record while it is read and written anew, so that two browser tabs lose nothing of each other's."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", wait_seconds=10, busy_message="This data set is being changed elsewhere."):
        yield


@contextmanager
def locked_for_adding(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the right to add picture files, beside which all else can be edited; waits for others who add. Raises: by `progress`."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(FileLock(folder / ".adding.lock", wait_seconds=0.5))
                break
            except RunError:
                progress("Waiting: other pictures are being added to this data set", 0, 0)
        yield


def _damaged(path: Path) -> DatasetError:
    return DatasetError(
        "A file of this data set is damaged.",
        where=str(path),
        fix="Repair it, or move it away: the pictures are not touched by that.",
    )
