"""Scanning a folder: every picture in it with its facts, caption and problems. The folder is only read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from trainer.dataset.backgrounds import Background
from trainer.dataset.caption_sources import CaptionTables, read_tables
from trainer.dataset.captions import ReadCaption, caption_of_texts, read_caption
from trainer.dataset.crops import Box, Crop
from trainer.dataset.listing import Listing, Remembered, list_folder
from trainer.dataset.looking import Observe, Progress, look_at_all
from trainer.dataset.masks import MaskFacts, shape_problem
from trainer.dataset.preparation import Preparation
from trainer.dataset.problems import Problem, error, warning
from trainer.dataset.scan_cache import FileFacts
from trainer.dataset.turns import back, turned_box
from trainer.dataset.walk import Stamp, name_below
from trainer.errors import DatasetError, Finding

EMBEDDED = "the picture itself"


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture. `name` is its path below the folder with `/`; sizes are those after EXIF orientation
    and the turn that the user gave it.

    `caption` is one line; `captions` are all that its file holds, one a line or an entry of a list. `mask` is the usable
    mask file beside it.
    """

    path: Path
    name: str
    width: int
    height: int
    sha256: str
    caption: str | None
    problems: tuple[Problem, ...] = ()
    captions: tuple[str, ...] = ()
    mask: MaskFacts | None = None
    caption_source: str = ""
    """Where the caption is from: a file's name, or `EMBEDDED`; empty for what was written in the app."""
    crop: Crop | None = None
    """The part of it that counts, where the user set one; `width` and `height` are those of the part."""
    background: Background | None = None
    """What it is filled with where the mask says that no subject is, if the user wants that."""
    turn: int = 0
    """By how many degrees the user turned it, clockwise."""

    @property
    def preparation(self) -> Preparation:
        """What the user did to its pixels."""
        return Preparation(self.turn, self.background, self.crop)

    @property
    def content(self) -> str:
        """Names what is seen: the SHA-256 of the file, and what was done to it."""
        return f"{self.sha256}{self.preparation.content}"

    def open(self) -> Image.Image:
        """The picture exactly as it is trained before it is cut to its bucket. Raises DatasetError: it cannot be read any more."""
        return self.preparation.open(self.path)

    def kept_box(self, box: Box) -> Box:
        """A box in px of the whole picture as it lies, in px of the picture as its file has it: as the record keeps crops."""
        left, top, right, bottom = map(round, turned_box(box, self.whole_size, back(self.turn)))
        return left, top, right, bottom

    def kept_part(self, box: Box) -> Box:
        """`kept_box` of a box in px of what is seen of it: of its crop, where it has one."""
        if self.crop is None:
            return self.kept_box(box)
        left, top, right, bottom = map(round, self.crop.widen(box))
        return self.kept_box((left, top, right, bottom))

    @property
    def whole_size(self) -> tuple[int, int]:
        """Width and height of the picture as it lies without its crop, in px."""
        return self.crop.whole if self.crop is not None else (self.width, self.height)

    @property
    def uncut(self) -> PictureFacts:
        """The same picture, as it lies, with all of it and its own background."""
        width, height = self.whole_size
        return replace(self, crop=None, background=None, width=width, height=height)

    @property
    def is_usable(self) -> bool:
        """Whether it can be trained on."""
        return not any(problem.is_error for problem in self.problems)


@dataclass(frozen=True)
class DatasetScan:
    """What lies in a folder: its pictures in order, and the problems that belong to no single picture."""

    folder: Path
    pictures: tuple[PictureFacts, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def usable(self) -> tuple[PictureFacts, ...]:
        """The pictures that can be trained on."""
        return tuple(picture for picture in self.pictures if picture.is_usable)

    @property
    def num_captions(self) -> int:
        """How many usable pictures have a caption."""
        return sum(1 for picture in self.usable if picture.caption)

    def findings(self) -> list[Finding]:
        """All problems, each with where it is."""
        own = [Finding("", problem.message) for problem in self.problems]
        return own + [Finding(facts.name, p.message) for facts in self.pictures for p in facts.problems]

    def require_usable(self) -> tuple[PictureFacts, ...]:
        """The usable pictures. Raises DatasetError, with every reason, where there is none."""
        if self.usable:
            return self.usable
        if not self.pictures:
            raise DatasetError(
                "There are no pictures in this folder.",
                where=str(self.folder),
                fix="Add JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF files.",
                findings=self.findings(),
            )
        raise DatasetError(
            "None of the pictures can be used.", where=str(self.folder), fix="Replace them.", findings=self.findings()
        )


def scan_folder(
    folder: Path, *, cache: Path | None = None, progress: Progress | None = None, observe: Observe | None = None
) -> DatasetScan:
    """Look at every picture in `folder` and the folders in it.

    Args:
        folder: only read, never changed.
        cache: a JSON file that remembers files by path, size and time of change, so that a second scan decodes nothing.
            A scan that is ended begins there the next time.
        progress: called after each picture; what it raises ends the scan.
        observe: looks at the pictures on the way, on all cores; not at masks.

    Raises: DatasetError: `folder` is missing, is no folder, or may not be read.
    """
    return _scan(list_folder(folder), cache, progress, observe)


def _scan(listing: Listing, cache: Path | None, progress: Progress | None, observe: Observe | None) -> DatasetScan:
    # Before anything is read: what changes from now on is then seen the next time.
    stamp = listing.stamp()
    known = _scans.get(str(listing.folder))
    if known is not None and stamp is not None and known[0] == stamp:
        if progress is not None:
            progress(len(known[1].pictures), len(known[1].pictures))
        return known[1]
    named = listing.sorted
    pictures = sorted(named.pictures, key=lambda path: _order(path, listing.folder))
    masks = list(dict.fromkeys(named.masks[path] for path in pictures if path in named.masks))
    scan = _described(listing, pictures, look_at_all(masks, pictures, cache, progress, observe))
    if stamp is not None:
        _scans.keep(str(listing.folder), (stamp, scan), len(pictures))
    return scan


def _described(listing: Listing, pictures: list[Path], looked: Mapping[Path, FileFacts]) -> DatasetScan:
    """What the files are as pictures of a data set: with captions, masks, and what is wrong."""
    folder, named = listing.folder, listing.sorted
    tables = read_tables(listing.files)
    facts: list[PictureFacts] = []
    for path in pictures:
        mask = named.masks.get(path)
        picture = _with_caption(path, folder, looked[path], tables, listing.captions.get(path))
        facts.append(_with_mask(picture, folder, mask, looked[mask]) if mask else picture)
    problems = [*listing.problems, *tables.problems, *(_orphan(path, folder) for path in named.orphans)]
    if not facts:
        problems.append(error("empty", "There are no pictures in this folder.", "Add JPEG, PNG or WebP files."))
    return DatasetScan(folder, tuple(_mark_clashes(facts)), tuple(problems))


_scans: Remembered[tuple[tuple[Stamp, ...], DatasetScan]] = Remembered(20_000)
"""The latest scans of this process, some 2 kB a picture."""


def _order(path: Path, folder: Path) -> tuple[list[tuple[int, str]], str]:
    """Names in the order people expect: 2 before 10."""
    name = name_below(path, folder)
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts], name


def _with_caption(
    path: Path, folder: Path, found: FileFacts, tables: CaptionTables, beside: Path | None
) -> PictureFacts:
    read, source = _caption(path, folder, found, tables, beside)
    return PictureFacts(
        path=path,
        name=name_below(path, folder),
        width=found.width,
        height=found.height,
        sha256=found.sha256,
        caption=read.text,
        problems=(*found.problems, *read.problems),
        captions=read.all,
        caption_source=source if read.text else "",
    )


def _caption(
    path: Path, folder: Path, found: FileFacts, tables: CaptionTables, beside: Path | None
) -> tuple[ReadCaption, str]:
    """The caption of a picture and where it is from: a file beside it, else a table, else the picture itself.

    A file that is there and empty says that there is no caption.
    """
    if beside is not None:
        return read_caption(beside), beside.name
    texts, table = tables.captions_of(path, folder)
    if texts:
        return caption_of_texts(texts), table
    if found.description:
        return caption_of_texts([found.description]), EMBEDDED
    return ReadCaption(None), ""


def _with_mask(facts: PictureFacts, folder: Path, mask: Path, found: FileFacts) -> PictureFacts:
    name = mask.relative_to(folder).as_posix()
    problem = next((problem for problem in found.problems if problem.is_error), None)
    if problem is not None:
        text = f"Its mask {name} cannot be used: {problem.message}"
        return replace(facts, problems=(*facts.problems, warning("mask_unreadable", text, problem.fix)))
    if not facts.is_usable:
        return facts
    wrong = shape_problem(name, (found.width, found.height), (facts.width, facts.height))
    if wrong is not None:
        return replace(facts, problems=(*facts.problems, wrong))
    return replace(facts, mask=MaskFacts(mask, found.sha256, found.width, found.height))


def _orphan(path: Path, folder: Path) -> Problem:
    name = path.relative_to(folder).as_posix()
    message = f"The mask {name} belongs to no picture: there is none of that name."
    return warning("mask_orphan", message, "Give both the same name, or remove it.")


def _mark_clashes(facts: list[PictureFacts]) -> list[PictureFacts]:
    """Warn of pictures that are byte for byte the same, and of those that share a caption file."""
    first_of: dict[str, PictureFacts] = {}
    of_stem: dict[Path, list[PictureFacts]] = defaultdict(list)
    for picture in facts:
        of_stem[picture.path.with_suffix("")].append(picture)
    marked: list[PictureFacts] = []
    for picture in facts:
        extra: list[Problem] = []
        if picture.sha256 and picture.is_usable:
            first = first_of.setdefault(picture.sha256, picture)
            if first is not picture:
                message = f"This is the same picture as {first.name}; it counts twice in training."
                extra.append(warning("duplicate", message, "Remove one of them."))
        others = [other.name for other in of_stem[picture.path.with_suffix("")] if other is not picture]
        if others:
            message = f"{', '.join(others)} has the same name but for its ending: both use one caption file."
            extra.append(warning("caption_clash", message, "Rename one of them."))
        marked.append(replace(picture, problems=(*picture.problems, *extra)) if extra else picture)
    return marked


def preflight(
    pictures: tuple[PictureFacts, ...], resolution: int, max_aspect_ratio: float, *, enlarges: bool = True
) -> list[Finding]:
    """What the user should know of these pictures for a training at this resolution; nothing here stops it."""
    found: list[Finding] = []
    for picture in pictures:
        if picture.width * picture.height < resolution * resolution:
            done = "it is enlarged" if enlarges else "it is trained at its own size"
            message = (
                f"is {picture.width}×{picture.height}, smaller than the training resolution of {resolution}: {done}"
            )
            found.append(Finding(picture.name, message))
        longest, shortest = max(picture.width, picture.height), min(picture.width, picture.height)
        if longest > shortest * max_aspect_ratio * 1.25:
            message = f"is {picture.width}×{picture.height}, longer than any bucket: much of its ends is cut off"
            found.append(Finding(picture.name, message))
    return found
