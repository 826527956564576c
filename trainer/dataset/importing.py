"""Bringing pictures into a data set of ours: from files, folders and zips; all of a drop or, after an error, nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.dataset.archives import safe_file_name, unpack_zip
from trainer.dataset.caption_sources import CaptionTables, is_table_name, read_tables
from trainer.dataset.captions import CAPTION_SUFFIXES, RECORD_NAMES, read_caption
from trainer.dataset.masks import MASK_ENDINGS, Sorted, sort_masks
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.walk import is_hidden_name, readable_name, walk_folder
from trainer.errors import DatasetError, Finding
from trainer.files import (
    TEMPORARY_PREFIX,
    disk_errors,
    file_sha256,
    replace,
    require_free,
    sync_file,
    sync_folder,
    write_json,
    write_text,
)


@dataclass(frozen=True)
class ImportReport:
    """What came in. `captions_for` are captions dropped without their picture, for pictures that were there already."""

    added: tuple[str, ...]
    num_captions: int
    left_out: tuple[Finding, ...]
    captions_for: dict[str, str]
    num_masks: int = 0

    def summary(self) -> str:
        """One line for the user."""
        parts = [f"{_count(len(self.added), 'picture')} added"]
        captions = self.num_captions + len(self.captions_for)
        if captions:
            parts.append(_count(captions, "caption"))
        if self.num_masks:
            parts.append(_count(self.num_masks, "mask"))
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out")
        return ", ".join(parts) + "."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass
class _Found:
    """Pictures and captions of a drop. Loose files are one group: a browser gives each its own folder."""

    pictures: list[tuple[Path, str]]
    captions: dict[tuple[str, str], Path]
    left_out: list[Finding]
    masks: dict[Path, Path]
    lone_masks: list[Path]
    """Masks that came without their picture, which may be there already."""
    from_tables: dict[Path, list[str]] = field(default_factory=dict)
    """Captions that tables have, by picture."""


def import_files(folder: Path, sources: Sequence[Path]) -> ImportReport:
    """Copy pictures and their captions into `folder`, under names that are unused there.

    Args:
        folder: a data set's own folder.
        sources: pictures, caption files, folders and zips; only read.

    Raises: DatasetError: a source is missing, nothing of it is a picture, or a zip is broken or harmful; nothing came in.
            ResourceError: the disk is full; nothing came in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder, "the pictures"):
        staging = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}import-", dir=folder.parent))
    try:
        found = _gather(sources, staging)
        report = _stage(found, folder, staging)
        if not report.added and not report.captions_for and not report.num_masks:
            _refuse_nothing(report)
        _publish(folder, staging / "ready")
        return report
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_nothing(report: ImportReport) -> None:
    if report.left_out and all("already" in finding.message for finding in report.left_out):
        return
    raise DatasetError(
        "There was no picture in what you dropped.",
        fix="Drop JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF files, a folder of them, or a zip of them.",
        findings=report.left_out,
    )


def _gather(sources: Sequence[Path], staging: Path) -> _Found:
    found = _Found([], {}, [], {}, [])
    loose: list[Path] = []
    for number, source in enumerate(sources):
        if source.is_dir():
            walked = walk_folder(source)
            found.left_out += [Finding("", problem.message) for problem in walked.problems]
            _take_folder(walked.files, source, found, f"{number}/")
        elif not source.is_file():
            raise DatasetError("This file is not there.", where=readable_name(source), fix="Check the path.")
        elif source.suffix.lower() == ".zip":
            unpacked = staging / f"zip-{number}"
            unpacked.mkdir()
            found.left_out += unpack_zip(source, unpacked)
            _take_folder(walk_folder(unpacked).files, unpacked, found, f"{number}/")
        else:
            loose.append(source)
    _sort_in([path for path in loose if not is_table_name(path.name)], found, "")
    tables = read_tables(loose)
    _note_tables(tables, found)
    for path, place in found.pictures:
        if not place and (texts := tables.captions_of_name(path.name)):
            found.from_tables[path] = texts
    return found


def _take_folder(files: Sequence[Path], root: Path, found: _Found, group: str) -> None:
    tables = read_tables(files)
    _note_tables(tables, found)
    _sort_in([path for path in files if not is_table_name(path.name)], found, group)
    for path in files:
        texts, _ = tables.captions_of(path, root)
        if texts:
            found.from_tables[path] = texts


def _note_tables(tables: CaptionTables, found: _Found) -> None:
    found.left_out += [Finding("", problem.message) for problem in tables.problems]


def _sort_in(files: Sequence[Path], found: _Found, group: str) -> None:
    # Loose files are compared by their names, wherever each of them lies.
    places = {(path if group else Path(path.name)): path for path in files if not is_hidden_name(path.name)}
    named = sort_masks(list(places))
    masks = {*named.masks.values(), *named.orphans}
    found.masks |= {places[picture]: places[mask] for picture, mask in named.masks.items()}
    found.lone_masks += [places[mask] for mask in named.orphans]
    for path in files:
        if (path if group else Path(path.name)) in masks:
            continue
        place = f"{group}{path.parent}" if group else ""
        if is_hidden_name(path.name):
            continue
        if is_picture_name(path):
            found.pictures.append((path, place))
        elif path.suffix.lower() in CAPTION_SUFFIXES:
            # .txt comes before .caption, as when a folder is scanned.
            key = (place, path.stem)
            if key not in found.captions or _precedes(path, found.captions[key]):
                found.captions[key] = path
        elif not group:
            found.left_out.append(Finding(readable_name(path.name), "is neither a picture, a caption nor a zip"))


def _precedes(path: Path, other: Path) -> bool:
    return CAPTION_SUFFIXES.index(path.suffix.lower()) < CAPTION_SUFFIXES.index(other.suffix.lower())


def _stage(found: _Found, folder: Path, staging: Path) -> ImportReport:
    """Copy what is new into `staging/ready` under its final names."""
    ready = staging / "ready"
    ready.mkdir()
    files = [*(path for path, _ in found.pictures), *found.masks.values(), *found.lone_masks]
    require_free(folder, sum(path.stat().st_size for path in files), "the pictures")
    there = sort_masks(walk_folder(folder).files)
    existing = there.pictures
    taken = {path.stem.casefold() for path in folder.iterdir()} | {Path(name).stem for name in RECORD_NAMES}
    known = _Known(existing)
    added, left_out = list[str](), list(found.left_out)
    used = set[tuple[str, str]]()
    lone_masks = [(mask, _subject(mask)) for mask in found.lone_masks]
    num_captions = num_masks = 0
    for path, place in sorted(found.pictures, key=lambda item: item[0].name):
        # `cat.txt`, else `cat.png.txt`.
        key = next((key for key in ((place, path.stem), (place, path.name)) if key in found.captions), None)
        caption = found.captions[key] if key else None
        used |= {key} if key else set()
        if (same := known.same_as(path)) is not None:
            left_out.append(Finding(readable_name(path.name), f"is already in the data set, as {same}"))
            if path in found.masks:
                lone_masks.append((found.masks[path], Path(same).stem))
            continue
        name = safe_file_name(readable_name(path.name))
        name = unused_name(name, taken)
        with disk_errors(ready / name, path.name):
            shutil.copyfile(path, ready / name)
            if caption is not None:
                suffix = ".json" if caption.suffix.lower() == ".json" else ".txt"
                shutil.copyfile(caption, ready / f"{Path(name).stem}{suffix}")
                num_captions += 1
            elif path in found.from_tables:
                write_captions(ready / name, found.from_tables[path])
                num_captions += 1
            if (mask := found.masks.get(path)) is not None:
                shutil.copyfile(mask, ready / f"{Path(name).stem}{MASK_ENDINGS[0]}{mask.suffix.lower()}")
                num_masks += 1
        known.add(ready / name)
        added.append(name)
    of_stem = {path.stem: path.relative_to(folder).as_posix() for path in existing}
    captions_for: dict[str, str] = {}
    for key, path in found.captions.items():
        if key in used:
            continue
        text = read_caption(path).text
        if path.stem in of_stem and text:
            captions_for[of_stem[path.stem]] = text
        elif key[0] == "":
            left_out.append(Finding(readable_name(path.name), "is a caption without a picture of that name"))
    for mask, stem in lone_masks:
        problem = _stage_lone_mask(mask, stem, there, ready)
        left_out += [problem] if problem else []
        num_masks += not problem
    return ImportReport(tuple(added), num_captions, tuple(left_out), captions_for, num_masks)


def write_captions(picture: Path, texts: Sequence[str]) -> None:
    """Write captions beside a picture, in the kind of file that keeps them apart."""
    if len(texts) == 1:
        write_text(picture.with_suffix(".txt"), texts[0], "the caption")
    else:
        write_json(picture.with_suffix(".json"), list(texts), "the captions")


def _subject(mask: Path) -> str:
    """The stem of the picture that a mask is for."""
    return next((mask.stem[: -len(end)] for end in MASK_ENDINGS if mask.stem.casefold().endswith(end)), mask.stem)


def _stage_lone_mask(mask: Path, stem: str, there: Sorted, ready: Path) -> Finding | None:
    """Put a mask beside the picture that is there already; says why not where it has none, or has a mask."""
    picture = next((path for path in there.pictures if path.stem == stem), None)
    if picture is None:
        return Finding(readable_name(mask.name), "is a mask without a picture of that name")
    if picture in there.masks:
        return Finding(readable_name(mask.name), f"is a mask, and {picture.name} has one already")
    with disk_errors(ready, mask.name):
        shutil.copyfile(mask, ready / f"{stem}{MASK_ENDINGS[0]}{mask.suffix.lower()}")
    return None


def unused_name(name: str, taken: set[str]) -> str:
    """`name`, or with a number: stems are unused too, as `a.jpg` and `a.png` would share one caption file."""
    path, number = Path(name), 2
    stem = path.stem
    while stem.casefold() in taken or f"{stem}{MASK_ENDINGS[0]}".casefold() in taken:
        stem = f"{path.stem} {number}"
        number += 1
    taken.add(stem.casefold())
    return f"{stem}{path.suffix}"


class _Known:
    """Finds files that are byte for byte the same; hashes only those of equal size."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._of_size: dict[int, list[Path]] = defaultdict(list)
        self._hashes: dict[Path, str] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        self._of_size[path.stat().st_size].append(path)

    def same_as(self, path: Path) -> str | None:
        candidates = self._of_size.get(path.stat().st_size, ())
        return next((other.name for other in candidates if self._hash(other) == self._hash(path)), None)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_sha256(path)
        return self._hashes[path]


def _publish(folder: Path, ready: Path) -> None:
    """Give the staged files their names. Pictures last: one is never there without its caption."""
    files = sorted(ready.iterdir(), key=lambda path: (is_picture_name(path), path.name))
    with disk_errors(folder, "the pictures"):
        for path in files:
            sync_file(path)
        for path in files:
            replace(path, folder / path.name)
        sync_folder(folder)
