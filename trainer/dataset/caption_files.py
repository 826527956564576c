"""Captions out to `.txt` files beside the pictures, and back. Files of the user's are only replaced when they say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.captioned import CaptionedPicture, captioned_pictures
from trainer.dataset.captions import caption_path, read_caption
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.record import CAPTIONS, load_captions, locked
from trainer.dataset.scan import EMBEDDED
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError, Finding
from trainer.files import disk_errors, unused_path, write_text
from trainer.paths import DataFolder

Progress = Callable[[int, int], object]
"""Called with (files done, files in all); what it raises ends the work between two files."""


@dataclass(frozen=True)
class Difference:
    """A caption file that does not say what the data set says."""

    name: str
    path: Path
    in_file: tuple[str, ...]
    in_set: tuple[str, ...]


@dataclass(frozen=True)
class ExportPlan:
    """What an export would do: files to write, files that say the same, files that differ, and pictures that get none."""

    new: tuple[CaptionedPicture, ...]
    num_same: int
    differing: tuple[Difference, ...]
    left_out: tuple[Finding, ...]


@dataclass(frozen=True)
class ExportReport:
    """What an export did. `backup` is where the files lie that were replaced."""

    num_written: int
    num_same: int
    replaced: tuple[Difference, ...]
    left_out: tuple[Finding, ...]
    backup: Path | None

    def summary(self) -> str:
        """Such as "12 caption files written, 3 of them replaced; the old ones are in the trash folder."""
        parts = [f"{self.num_written} caption files written"]
        if self.replaced:
            parts.append(f"{len(self.replaced)} of them replaced older ones, which are in the trash folder")
        parts += [f"{self.num_same} said the same already"] if self.num_same else []
        parts += [f"{len(self.left_out)} pictures left out"] if self.left_out else []
        return ", ".join(parts) + "."


def plan_export(store: DatasetStore, info: DatasetInfo) -> ExportPlan:
    """What writing the captions of a data set beside its pictures would do; nothing is written. Raises DatasetError."""
    pictures = captioned_pictures(store, info.name)
    without = _without_record(store, info)
    shared = _disagreeing(pictures)
    new: list[CaptionedPicture] = []
    differing: list[Difference] = []
    num_same, seen = 0, set[Path]()
    for picture in pictures:
        target = picture.facts.path.with_suffix(".txt")
        if picture.name in shared or target in seen:
            continue
        seen.add(target)
        if not target.exists():
            # An empty file is written where another one, a table or the picture would otherwise say a caption.
            if picture.captions or picture.name in without:
                new.append(picture)
            continue
        in_file = read_caption(target).all
        if in_file == picture.captions:
            num_same += 1
        else:
            differing.append(Difference(picture.name, target, in_file, picture.captions))
    left_out = [
        Finding(name, f"shares its caption file with {other}, which has another caption")
        for name, other in shared.items()
    ]
    return ExportPlan(tuple(new), num_same, tuple(differing), tuple(left_out))


def _disagreeing(pictures: Sequence[CaptionedPicture]) -> dict[str, str]:
    """Pictures whose `.txt` would be another's too (a.png and a.jpg), where the captions differ: by name, with the other."""
    of_stem: dict[Path, list[CaptionedPicture]] = {}
    for picture in pictures:
        of_stem.setdefault(picture.facts.path.with_suffix(""), []).append(picture)
    found: dict[str, str] = {}
    for group in of_stem.values():
        # Where any two differ none gets the file, which would speak of all of them.
        other = next((each for each in group if each.captions != group[0].captions), None)
        if other is not None:
            first, same = group[0].name, group[0].captions
            found |= {each.name: other.name if each.captions == same else first for each in group}
    return found


def export_captions(
    store: DatasetStore, data: DataFolder, name: str, *, overwrite: bool = False, progress: Progress | None = None
) -> ExportReport:
    """Write each picture's captions beside it, one a line, as UTF-8 `.txt`.

    Args:
        store: the data sets.
        data: the data folder; replaced files are copied into its trash first.
        name: the data set.
        overwrite: whether files that say something else may be replaced.
        progress: told after each file.

    Raises: DatasetError: files differ and may not be replaced (each is named), or the set is bundled. ResourceError: a
        folder may not be written to, or the disk is full. What was written by then stays, and is found the same next time.
    """
    info = _changeable(store, name)
    assert info.record is not None  # noqa: S101 - `_changeable` saw to it
    with locked(info.record):
        plan = plan_export(store, info)
        if plan.differing and not overwrite:
            raise DatasetError(
                f"{len(plan.differing)} caption files beside the pictures say something else; nothing was written.",
                where=str(info.folder),
                fix="Look at the differences; then allow replacing them, or take the files' captions.",
                findings=[
                    Finding(item.path.relative_to(info.folder).as_posix(), _said(item)) for item in plan.differing
                ],
            )
        backup = unused_path(data.trash / f"{info.name} (captions)") if plan.differing else None
        todo = [(picture.facts.path.with_suffix(".txt"), picture.text, None) for picture in plan.new]
        todo += [(item.path, "\n".join(item.in_set), backup) for item in plan.differing]
        for done, (path, text, folder) in enumerate(todo, start=1):
            if folder is not None:
                _keep_copy(path, folder / path.relative_to(info.folder))
            write_text(path, f"{text}\n" if text else "", "a caption file")
            if progress is not None:
                progress(done, len(todo))
    return ExportReport(len(todo), plan.num_same, plan.differing, plan.left_out, backup)


def caption_differences(store: DatasetStore, name: str) -> list[Difference]:
    """Where the files beside the pictures, a table or the pictures themselves say something else than the data set.

    Raises: DatasetError.
    """
    info = store.get(name)
    without = _without_record(store, info)
    written = load_captions(info.record) if info.record is not None else {}
    found = []
    for picture in captioned_pictures(store, info.name):
        source = without.get(picture.name)
        if source is not None and picture.name in written and source.captions != picture.captions:
            found.append(Difference(picture.name, source.path, source.captions, picture.captions))
    return found


@dataclass(frozen=True)
class _Source:
    path: Path
    captions: tuple[str, ...]


def _without_record(store: DatasetStore, info: DatasetInfo) -> dict[str, _Source]:
    """What says the captions of pictures where the record does not, by picture name: a file, even an empty one, a table or
    the picture."""
    found = {}
    for facts in store.scan_files(info).pictures:
        beside = caption_path(facts.path)
        if beside is not None:
            found[facts.name] = _Source(beside, facts.captions)
        elif facts.captions:
            is_table = facts.caption_source not in ("", EMBEDDED)
            found[facts.name] = _Source(
                facts.path.with_name(facts.caption_source) if is_table else facts.path, facts.captions
            )
    return found


def take_file_captions(store: DatasetStore, name: str) -> int:
    """Let the files beside the pictures say the captions again, where they differ: a change that can be undone.

    Returns: how many captions changed. Raises: DatasetError.
    """
    info = store.get(name)
    differing = caption_differences(store, info.name)
    if differing:
        # Without a caption in the record the file counts, now and when it is edited later.
        values = {(CAPTIONS, item.name): None for item in differing}
        store.change(info.name, f"Took {len(differing)} captions from the files", values)
    return len(differing)


def _changeable(store: DatasetStore, name: str) -> DatasetInfo:
    info = store.get(name)
    if info.is_bundled:
        raise DatasetError(
            "Captions of a bundled data set are not written beside its pictures: the files belong to Inkwash.",
            where=info.title,
            fix="They are kept in the data folder as they are; or copy the pictures into a data set of your own.",
        )
    if info.record is None:
        raise DatasetError(
            "This folder is no data set yet, so it has no captions but its files.",
            where=str(info.folder),
            fix="Use the folder in the Dataset tab first.",
        )
    return info


def _keep_copy(path: Path, target: Path) -> None:
    with disk_errors(target, "the copy of a caption file"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _said(item: Difference) -> str:
    return f"'{_short(item.in_file)}' in the file, '{_short(item.in_set)}' in the data set"


def _short(captions: Sequence[str]) -> str:
    text = " | ".join(captions)
    return text if len(text) <= 80 else f"{text[:79]}…"
