"""Versions of a data set: what exactly a run was trained on, kept in its folder, and how that differs from today.

A run's `datasets.json` names every picture with the hash of its bytes, its captions, and whatever the record says of it (crops and
other edits): small beside the pictures, which are not copied. `trainer.dataset.restoring` brings a version back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.dataset.catalog import DatasetCatalog, DatasetInfo
from trainer.dataset.history import State
from trainer.dataset.record import (
    BACKGROUNDS,
    CAPTIONS,
    CROPS,
    EXCLUDED,
    IGNORED,
    MASKS,
    SETTINGS,
    TURNS,
    load_state,
)
from trainer.dataset.scan import PictureFacts
from trainer.dataset.walk import readable_name
from trainer.errors import DatasetError
from trainer.files import write_json

FILE_NAME = "datasets.json"
_FORMAT = 1
Role = Literal["training", "class_pictures"]
DifferenceKind = Literal["added", "removed", "renamed", "picture", "caption", "mask", "edit", "setting"]


@dataclass(frozen=True)
class PictureVersion:
    """A picture as it was: SHA-256 of its file, its caption, all of its captions where there are several, and its mask's SHA-256."""

    sha256: str
    caption: str = ""
    captions: tuple[str, ...] = ()
    mask: str = ""


@dataclass(frozen=True)
class DatasetVersion:
    """A data set at one moment: the pictures that count, by name, and its record's documents."""

    name: str
    title: str
    folder: str
    pictures: dict[str, PictureVersion]
    documents: State = field(default_factory=dict)
    role: Role = "training"

    @property
    def sha256(self) -> str:
        """A hash of what is trained on: names, bytes, captions, masks and edits of its pictures. Two data sets with the
        same hash train the same. Settings, which a run has of its own, and what is left out do not count."""
        pictures = [[name, *asdict(picture).values(), self._edits_of(name)] for name, picture in self._sorted()]
        text = json.dumps(pictures, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _sorted(self) -> list[tuple[str, PictureVersion]]:
        return sorted(self.pictures.items())

    def _edits_of(self, picture: str) -> dict[str, Any]:
        return {name: document[picture] for name, document in self.edits().items() if picture in document}

    def edits(self) -> State:
        """The documents besides settings, captions and what is left out, whose effects are said otherwise."""
        return {name: doc for name, doc in self.documents.items() if name not in (SETTINGS, CAPTIONS, EXCLUDED)}


def version_of(
    info: DatasetInfo, pictures: Iterable[PictureFacts], documents: State | None = None, role: Role = "training"
) -> DatasetVersion:
    """The version that a scan found. `documents` are those of the record, read from it where they are not given."""
    if documents is None:
        documents = load_state(info.record) if info.record is not None else {}
    found = {facts.name: _picture_version(facts) for facts in pictures}
    folder = readable_name(info.folder)
    # A plain folder is found by its path alone.
    return DatasetVersion(folder if info.record is None else info.name, info.title, folder, found, documents, role)


def _picture_version(facts: PictureFacts) -> PictureVersion:
    several = facts.captions if len(facts.captions) > 1 else ()
    return PictureVersion(facts.sha256, facts.caption or "", several, facts.mask.sha256 if facts.mask else "")


def current_version(catalog: DatasetCatalog, name: str) -> DatasetVersion:
    """A data set as it is now, with its usable pictures. Raises DatasetError."""
    return version_of(catalog.get(name), catalog.scan(name).usable)


def write_versions(folder: Path, versions: Sequence[DatasetVersion]) -> None:
    """Write the data sets of a run into its folder. Raises ResourceError."""
    sets = [{**asdict(version), "sha256": version.sha256} for version in versions]
    write_json(folder / FILE_NAME, {"format": _FORMAT, "sets": sets}, "the record of the data set")


def read_versions(folder: Path) -> list[DatasetVersion]:
    """The data sets of a run, from its folder.

    Raises: DatasetError: the run wrote none down (it is older, or ended before it had looked at its pictures), or they are damaged.
    """
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise DatasetError("This run was made by a newer Inkwash.", where=str(path), fix="Update Inkwash.")
        return [_parsed(entry) for entry in data["sets"]]
    except FileNotFoundError as failure:
        raise DatasetError(
            "This run did not write down what it was trained on.",
            where=folder.name,
            fix="Runs do so since Inkwash keeps versions, as soon as they have looked at their pictures.",
        ) from failure
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise DatasetError("The record of this run's data set is damaged.", where=str(path)) from failure


def _parsed(entry: Mapping[str, Any]) -> DatasetVersion:
    pictures = {
        name: PictureVersion(one["sha256"], one["caption"], tuple(one["captions"]), one["mask"])
        for name, one in entry["pictures"].items()
    }
    name, title, folder = (str(entry[key]) for key in ("name", "title", "folder"))
    return DatasetVersion(name, title, folder, pictures, dict(entry["documents"]), entry["role"])


@dataclass(frozen=True)
class Difference:
    """One thing that differs. `before` and `after` are texts; of pictures that came or went, their captions. `what` says what was edited."""

    kind: DifferenceKind
    name: str
    before: str = ""
    after: str = ""
    what: str = ""

    def __str__(self) -> str:
        match self.kind:
            case "added":
                return f"{self.name}: is new"
            case "removed":
                return f"{self.name}: is gone"
            case "renamed":
                return f"{self.name}: was named {self.before}"
            case "picture":
                return f"{self.name}: the picture was changed"
            case "mask":
                return f"{self.name}: its mask was changed"
        if self.kind == "edit":
            return f"{self.name}: {self.what} was {self.before or 'none'}, is {self.after or 'none'}"
        what = {"caption": "its caption"}.get(self.kind, "it")
        return f"{self.name}: {what} was {_quoted(self.before)}, is {_quoted(self.after)}"


def _quoted(text: str) -> str:
    return f"'{text}'" if text else "empty"


def differences(before: DatasetVersion, after: DatasetVersion) -> list[Difference]:
    """What leads from one version to another, by picture name; settings last."""
    new = {picture.sha256: name for name, picture in after.pictures.items() if name not in before.pictures}
    renamed: dict[str, str] = {}
    for name, picture in before.pictures.items():
        if name not in after.pictures and picture.sha256 in new:
            renamed[name] = new.pop(picture.sha256)
    found: list[Difference] = []
    for name, picture in before.pictures.items():
        now = renamed.get(name, name)
        if now not in after.pictures:
            found.append(Difference("removed", name, before=picture.caption))
            continue
        if now != name:
            found.append(Difference("renamed", now, before=name))
        found += _picture_differences(now, picture, after.pictures[now])
        found += _edit_differences(name, now, before.edits(), after.edits())
    known = {*before.pictures, *renamed.values()}
    found += [Difference("added", name, after=one.caption) for name, one in after.pictures.items() if name not in known]
    return [*sorted(found, key=lambda one: one.name), *_setting_differences(before, after)]


def _picture_differences(name: str, before: PictureVersion, after: PictureVersion) -> list[Difference]:
    found = []
    if before.sha256 != after.sha256:
        found.append(Difference("picture", name))
    if (before.caption, before.captions) != (after.caption, after.captions):
        found.append(Difference("caption", name, _all_captions(before), _all_captions(after)))
    if before.mask != after.mask:
        found.append(Difference("mask", name))
    return found


def _all_captions(picture: PictureVersion) -> str:
    return " | ".join(picture.captions) or picture.caption


def _edit_differences(old_name: str, name: str, before: State, after: State) -> list[Difference]:
    found = []
    # A mask of the record is told by its file already.
    for document in sorted({*before, *after} - {MASKS}):
        was, now = before.get(document, {}).get(old_name), after.get(document, {}).get(name)
        if was != now:
            found.append(edit_difference(document, name, was, now))
    return found


_EDITS: dict[str, tuple[str, Callable[[Any], str]]] = {
    CROPS: ("its crop", lambda box: ", ".join(map(str, box))),
    BACKGROUNDS: ("its background", str),
    TURNS: ("its turn", lambda degrees: f"{degrees}° clockwise"),
}
"""What edits are called, and how their values are told."""


def edit_difference(document: str, name: str, was: Any, now: Any) -> Difference:
    """How an edit of a picture, or a finding that is ignored, differs; None where there is none."""
    if document == MASKS:
        return Difference("mask", name)
    if document == IGNORED:
        check, _, pictures = name.partition("|")
        words = {True: "ignored", None: "shown"}
        what = f"what the check says of {check}"
        return Difference("edit", pictures.replace("|", ", ") or "the set", words[was], words[now], what)
    what, tell = _EDITS.get(document, (document, _plain))
    before, after = (tell(value) if value is not None else "" for value in (was, now))
    return Difference("edit", name, before, after, what)


def _setting_differences(before: DatasetVersion, after: DatasetVersion) -> list[Difference]:
    was, now = before.documents.get(SETTINGS, {}), after.documents.get(SETTINGS, {})
    return [
        Difference("setting", key.replace("_", " "), _plain(was.get(key)), _plain(now.get(key)))
        for key in sorted({*was, *now})
        # None and an empty text both mean that nothing is set.
        if (was.get(key) or None) != (now.get(key) or None)
    ]


def _plain(value: Any) -> str:
    if value in (None, ""):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
