"""Bringing pictures into a data set of ours: from files, folders and zips; all of a drop or, after an error, nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.archives import safe_file_name
from trainer.dataset.captions import RECORD_NAMES, caption_path, read_caption
from trainer.dataset.dropped import Source
from trainer.dataset.gathering import Gathered, gather
from trainer.dataset.masks import MASK_ENDINGS, Sorted, sort_masks
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.walk import readable_name, walk_folder
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
from trainer.progress import Progress, no_progress


@dataclass(frozen=True)
class ImportReport:
    """What came in. `captions_for` are captions for pictures that were there already."""

    added: tuple[str, ...]
    num_captions: int
    left_out: tuple[Finding, ...]
    captions_for: dict[str, str]
    """By picture name, several one a line."""
    num_masks: int = 0
    brought_back: tuple[str, ...] = ()
    """Pictures that had been left out of the data set, and were given again."""

    def summary(self) -> str:
        """One line for the user."""
        parts = [f"{_count(len(self.added), 'picture')} added"]
        if self.brought_back:
            parts.append(f"{len(self.brought_back)} brought back")
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


def import_files(
    folder: Path, sources: Sequence[Source], excluded: Collection[str] = (), progress: Progress = no_progress
) -> ImportReport:
    """Copy pictures and their captions into `folder`, under names that are unused there.

    Args:
        folder: a data set's own folder.
        sources: pictures, caption files, folders and zips; only read.
        excluded: names of pictures in it that are left out: where one is given again, the report says so.

    Raises: DatasetError: a source is missing, nothing of it is a picture, or a zip is broken or harmful; nothing came in.
            ResourceError: the disk is full; nothing came in. Cancelled: by `progress`; nothing came in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder, "the pictures"):
        staging = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}import-", dir=folder.parent))
    try:
        report = _stage(gather(sources, staging, progress), folder, staging, excluded, progress)
        if not (report.added or report.captions_for or report.num_masks or report.brought_back):
            _refuse_nothing(report)
        _publish(folder, staging / "ready", progress)
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


def _stage(found: Gathered, folder: Path, staging: Path, excluded: Collection[str], progress: Progress) -> ImportReport:
    """Copy what is new into `staging/ready` under its final names."""
    ready = staging / "ready"
    ready.mkdir()
    files = [*found.pictures, *found.masks.values(), *found.lone_masks]
    require_free(folder, sum(path.stat().st_size for path in files), "the pictures")
    there = sort_masks(walk_folder(folder).files)
    taken = {path.stem.casefold() for path in folder.iterdir()} | {Path(name).stem for name in RECORD_NAMES}
    names = {path: path.relative_to(folder).as_posix() for path in there.pictures}
    # One that is in use comes before the same one that was left out.
    known = _Known(sorted(there.pictures, key=lambda path: names[path] in excluded))
    left_out, captions_for = list(found.left_out), dict[str, str]()
    added, brought_back = list[str](), dict[str, None]()
    lone_masks = [(mask, _subject(mask)) for mask in found.lone_masks]
    num_captions = num_masks = 0
    for number, path in enumerate(sorted(found.pictures, key=lambda path: path.name)):
        progress("Copying pictures", number, len(found.pictures))
        texts = found.texts_of(path)
        if (same := known.same_as(path)) is not None:
            name = names.get(same, same.name)
            if name in excluded:
                brought_back[name] = None
            else:
                left_out.append(Finding(readable_name(path.name), f"is already in the data set, as {name}"))
            kept = caption_path(same)
            if texts and same in names and (kept is None or read_caption(kept).all != texts):
                # Another caption than came in with it is news; the same may have been changed by the user since.
                captions_for[name] = "\n".join(texts)
            elif texts and same not in names and kept is None:
                write_captions(same, texts)
                num_captions += 1
            if path in found.masks:
                lone_masks.append((found.masks[path], same.stem))
            continue
        name = safe_file_name(readable_name(path.name))
        name = unused_name(name, taken)
        with disk_errors(ready / name, path.name):
            shutil.copyfile(path, ready / name)
            if (caption := found.captions.get(path)) is not None:
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
    progress("Copying pictures", len(found.pictures), len(found.pictures))
    left_out += _take_lone_captions(found, names, captions_for)
    for mask, stem in lone_masks:
        problem = _stage_lone_mask(mask, stem, there, ready)
        left_out += [problem] if problem else []
        num_masks += not problem
    return ImportReport(tuple(added), num_captions, tuple(left_out), captions_for, num_masks, tuple(brought_back))


def _take_lone_captions(found: Gathered, names: Mapping[Path, str], captions_for: dict[str, str]) -> list[Finding]:
    """Add captions without a picture to `captions_for`, where there is a picture of that name; returns what finds none."""
    of_key = {path.stem: name for path, name in names.items()}
    of_key |= {path.name: name for path, name in names.items()}
    problems: list[Finding] = []
    for path in found.lone_captions:
        name, text = of_key.get(path.stem), "\n".join(read_caption(path).all)
        if name is not None and text:
            if captions_for.setdefault(name, text) != text:
                problems.append(Finding(readable_name(path.name), f"is another caption of {name} than the one taken"))
        elif path in found.loose:
            problems.append(Finding(readable_name(path.name), "is a caption without a picture of that name"))
    return problems


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

    def same_as(self, path: Path) -> Path | None:
        candidates = self._of_size.get(path.stat().st_size, ())
        return next((other for other in candidates if self._hash(other) == self._hash(path)), None)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_sha256(path)
        return self._hashes[path]


def _publish(folder: Path, ready: Path, progress: Progress) -> None:
    """Give the staged files their names. Pictures last: one is never there without its caption."""
    files = sorted(ready.iterdir(), key=lambda path: (is_picture_name(path), path.name))
    with disk_errors(folder, "the pictures"):
        for number, path in enumerate(files):
            progress("Writing to the disk", number, len(files))
            sync_file(path)
        progress("Writing to the disk", len(files), len(files))
        # From here on it is not asked again whether to stop: all of them come in.
        for path in files:
            replace(path, folder / path.name)
        sync_folder(folder)
