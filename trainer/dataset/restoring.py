"""Bringing a version of a data set back: as a change of the same one that can be undone, or as a data set of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.history import State
from trainer.dataset.masks import MASK_ENDINGS
from trainer.dataset.painted import mask_path
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.record import CAPTIONS, EXCLUDED, MASKS, SETTINGS, load_state
from trainer.dataset.scan import DatasetScan, PictureFacts, Progress
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import DatasetVersion, PictureVersion, read_versions
from trainer.dataset.walk import walk_folder
from trainer.errors import DatasetError, Finding
from trainer.files import TEMPORARY_PREFIX, disk_errors, file_sha256, is_inside, write_json, write_text
from trainer.paths import DataFolder
from trainer.progress import Progress as StageProgress
from trainer.progress import no_progress
from trainer.runs import find_run

_KEPT_SETTINGS = ("title",)
"""Settings that restoring leaves as they are: a data set that was named anew keeps its name."""


@dataclass(frozen=True)
class Restored:
    """What came back: the data set, whether anything changed, how many pictures it now has, and what could not be brought back."""

    name: str
    has_changed: bool
    num_pictures: int
    problems: tuple[Finding, ...]

    def summary(self) -> str:
        """One line for the user."""
        if self.num_pictures == 1:
            return "1 picture is as it was in that run."
        return f"{self.num_pictures} pictures are as they were in that run."


def version_of_run(store: DatasetStore, data: DataFolder, name: str, run_id: str) -> DatasetVersion:
    """The state of a data set that a run was trained on. Raises DatasetError: it was not trained on it. RunError: there is no such run."""
    info = store.get(name)
    versions = read_versions(find_run(data, run_id).folder)
    found = next((one for one in versions if info.name == one.name or str(info.folder) == one.folder), None)
    if found is None:
        raise DatasetError("This run was not trained on this data set.", where=run_id)
    return found


def restore_in_place(
    store: DatasetStore, version: DatasetVersion, title: str, progress: Progress | None = None
) -> Restored:
    """Make a version today's state of the data set that it was taken of, as one change that can be undone.

    Pictures that came later are left out, captions and edits are put back, and no file is touched. A picture that lies there
    under another name is found by its bytes.

    Args:
        title: what the history says of it.

    Raises: DatasetError: there is no such data set any more, it has no record, or none of the pictures is there.
    """
    info = store.get(version.name)
    if info.record is None:
        raise DatasetError(
            "This folder was never made a data set, so there is nothing to undo a change with.",
            where=str(info.folder),
            fix="Restore it as a new data set, or link the folder first.",
        )
    scan, state = store.scan_files(info, progress=progress), load_state(info.record)
    places, problems = _places(version, scan)
    if version.pictures and not places:
        raise DatasetError("None of the pictures of this version is there any more.", findings=problems)
    values: dict[tuple[str, str], Any] = _settings(state, version)
    found = {facts.name: facts for facts in scan.pictures}
    values |= {(EXCLUDED, name): True for name in found.keys() - set(places.values())}
    for name, place in places.items():
        values[EXCLUDED, place] = None
        caption, problem = _caption(version, name, found[place])
        values[CAPTIONS, place] = caption
        problems += [problem] if problem else []
    edits = version.edits()
    for document in {*state, *edits} - {SETTINGS, CAPTIONS, EXCLUDED}:
        values |= {(document, key): None for key in state.get(document, {})}
        values |= {(document, places.get(key, key)): value for key, value in edits.get(document, {}).items()}
    return Restored(info.name, store.change(info.name, title, values), len(places), tuple(problems))


def _settings(state: State, version: DatasetVersion) -> dict[tuple[str, str], Any]:
    kept = version.documents.get(SETTINGS, {})
    keys = {*state.get(SETTINGS, {}), *kept} - {*_KEPT_SETTINGS}
    return {(SETTINGS, key): kept.get(key) for key in keys} if kept else {}


def _places(version: DatasetVersion, scan: DatasetScan) -> tuple[dict[str, str], list[Finding]]:
    """Under which name each picture of a version lies now; those that are gone or changed are named."""
    there = {facts.name: facts.sha256 for facts in scan.pictures if facts.is_usable}
    others = {sha256: name for name, sha256 in there.items() if name not in version.pictures}
    places: dict[str, str] = {}
    problems: list[Finding] = []
    for name, picture in version.pictures.items():
        if there.get(name) == picture.sha256:
            places[name] = name
        elif picture.sha256 in others:
            places[name] = others.pop(picture.sha256)
        elif name in there:
            places[name] = name
            problems.append(Finding(name, "the file was changed since; it stays as it is now"))
        else:
            problems.append(Finding(name, "its file is gone"))
    return places, problems


def _caption(version: DatasetVersion, name: str, facts: PictureFacts) -> tuple[str | None, Finding | None]:
    """What the record has to say of a picture's caption: None where the file beside it says the same as then."""
    picture = version.pictures[name]
    written = version.documents.get(CAPTIONS, {}).get(name)
    if written is not None:
        return written, None
    several = facts.captions if len(facts.captions) > 1 else ()
    if (facts.caption or "", several) == (picture.caption, picture.captions):
        return None, None
    if picture.captions and picture.caption == " ".join(picture.captions):
        return "\n".join(picture.captions), None  # lines of a .txt file, as the record has them, too
    lost = Finding(name, f"had {len(picture.captions)} captions in a file that changed; the first is kept")
    return picture.caption, lost if picture.captions else None


def restore_as_new(
    store: DatasetStore,
    data: DataFolder,
    version: DatasetVersion,
    name: str,
    progress: StageProgress = no_progress,
) -> Restored:
    """Make a data set of its own out of a version: copies of its pictures, looked for by their bytes in the data set's folder and in the trash.

    Raises: DatasetError: the name is empty or taken, or no picture is there any more. ResourceError: the disk is full.
            Cancelled: by `progress`; there is none then.
    """
    looking = partial(progress, "Looking at the pictures")
    files, masks = _find_files(store, data, version, looking)
    problems = [Finding(each, "its file is gone") for each in version.pictures if each not in files]
    problems += [
        Finding(each, "its mask is gone")
        for each, one in version.pictures.items()
        if one.mask and one.mask not in masks
    ]
    if not files:
        raise DatasetError("None of the pictures of this version is there any more.", findings=problems)
    data.datasets.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}version-", dir=data.datasets))
    try:
        for picture, path in files.items():
            place, one = staging / picture, version.pictures[picture]
            if not is_inside(place, staging):
                raise DatasetError("A picture of this version has a name that leads out of its folder.", where=picture)
            _put(path, place)
            if one.mask in masks:
                _put(masks[one.mask], place.with_name(f"{place.stem}{MASK_ENDINGS[0]}{masks[one.mask].suffix}"))
            _write_several(place, one)
        trigger_word = version.documents.get(SETTINGS, {}).get("trigger_word") or ""
        info, report = store.create_from(name, [staging], trigger_word=trigger_word, progress=progress)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    problems += [Finding(finding.where, finding.message) for finding in report.left_out]
    try:
        values = _documents_of_copy(version, store.scan_files(info, progress=looking).pictures)
        store.change(info.name, f"As it was in {version.title}", values)
    except BaseException:
        shutil.rmtree(info.folder, ignore_errors=True)  # copies, made a moment ago
        raise
    return Restored(info.name, True, len(report.added), tuple(problems))


def _find_files(
    store: DatasetStore, data: DataFolder, version: DatasetVersion, progress: Progress | None
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The file of each picture that is still there, by name, and masks by their SHA-256."""
    of_sha: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    info = _info_of(store, version)
    if info is not None:
        scan = store.scan_files(info, progress=progress)
        of_sha = {facts.sha256: facts.path for facts in scan.pictures if facts.is_usable}
        masks = {facts.mask.sha256: facts.mask.path for facts in scan.pictures if facts.mask}
    wanted = {picture.sha256 for picture in version.pictures.values()} - of_sha.keys()
    wanted_masks = {picture.mask for picture in version.pictures.values() if picture.mask} - masks.keys()
    records = [info.record] if info is not None and info.record is not None else []
    records += _trash_folders(data, version.name)
    painted = {sha: path for sha in wanted_masks for record in records if (path := mask_path(record, sha)).is_file()}
    masks, wanted_masks = {**masks, **painted}, wanted_masks - painted.keys()
    if wanted or wanted_masks:
        for path in _trashed(data, version.name):
            digest = file_sha256(path)
            if digest in wanted:
                of_sha.setdefault(digest, path)
            elif digest in wanted_masks:
                masks.setdefault(digest, path)
    names = version.pictures.items()
    return {name: of_sha[picture.sha256] for name, picture in names if picture.sha256 in of_sha}, masks


def _info_of(store: DatasetStore, version: DatasetVersion) -> DatasetInfo | None:
    for place in (version.name, version.folder):
        try:
            info = store.get(place)
        except DatasetError:
            continue  # it was deleted, or its disk is not there; the trash may have it
        if not info.is_missing:
            return info
    return None


def _trashed(data: DataFolder, name: str) -> Iterable[Path]:
    """Pictures of a data set in the trash: those that were thrown out of it, and all of them where it was deleted."""
    for folder in _trash_folders(data, name):
        yield from (path for path in walk_folder(folder).files if is_picture_name(path))


def _trash_folders(data: DataFolder, name: str) -> list[Path]:
    folders = sorted(data.trash.glob("*")) if data.trash.is_dir() else []
    return [folder for folder in folders if folder.is_dir() and folder.name.startswith(name)]


def _put(source: Path, target: Path) -> None:
    """The file under another name, for a moment: a link where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(target, "the pictures"):
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _write_several(place: Path, picture: PictureVersion) -> None:
    """The caption file of a picture with several captions, of the kind that reads as it did."""
    if not picture.captions:
        return
    if picture.caption == " ".join(picture.captions):
        write_text(place.with_suffix(".txt"), "\n".join(picture.captions), "the captions")
    else:
        write_json(place.with_suffix(".json"), list(picture.captions), "the captions")


def _documents_of_copy(version: DatasetVersion, pictures: Iterable[PictureFacts]) -> dict[tuple[str, str], Any]:
    """Captions and edits of the copies, which may have other names: their bytes tell which is which."""
    names: dict[str, str] = {}
    for name, picture in version.pictures.items():
        names.setdefault(picture.sha256, name)
    values: dict[tuple[str, str], Any] = {}
    for facts in pictures:
        name = names.get(facts.sha256)
        if name is None:
            continue
        one: PictureVersion = version.pictures[name]
        if (facts.caption or "") != one.caption:
            values[CAPTIONS, facts.name] = one.caption
        for document, kept in version.edits().items():
            # A painted mask came along as a file beside the copy.
            if name in kept and document != MASKS:
                values[document, facts.name] = kept[name]
    settings = version.documents.get(SETTINGS, {})
    return values | {(SETTINGS, key): value for key, value in settings.items() if key not in _KEPT_SETTINGS}
