"""Scanning a folder: every picture in it with its facts, caption and problems. The folder is only read."""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import PIL

from trainer.dataset.captions import caption_path, read_caption
from trainer.dataset.masks import MaskFacts, shape_problem, sort_masks
from trainer.dataset.pictures import UnusablePicture, read_picture
from trainer.dataset.problems import Problem, error, warning
from trainer.dataset.walk import walk_folder
from trainer.errors import DatasetError, Finding, ResourceError
from trainer.files import file_sha256, write_json

log = logging.getLogger(__name__)
Progress = Callable[[int, int], object]
"""Called with (pictures done, pictures in all)."""

# Entries of another version say what another Pillow, or another Inkwash, thought of the picture.
_CACHE_VERSION = f"1/{PIL.__version__}"


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture. `name` is its path below the folder with `/`; sizes are those after EXIF orientation.

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


@dataclass(frozen=True)
class _FileFacts:
    """What follows from a picture file's bytes alone: this is what the cache keeps."""

    width: int
    height: int
    sha256: str
    problems: tuple[Problem, ...]


def scan_folder(folder: Path, *, cache: Path | None = None, progress: Progress | None = None) -> DatasetScan:
    """Look at every picture in `folder` and the folders in it.

    Args:
        folder: only read, never changed.
        cache: a JSON file that remembers files by path, size and time of change, so that a second scan decodes nothing.
        progress: called after each picture; what it raises ends the scan.

    Raises: DatasetError: `folder` is missing, is no folder, or may not be read.
    """
    walked = walk_folder(folder)
    named = sort_masks(walked.files)
    pictures = sorted(named.pictures, key=lambda path: name_order(path.relative_to(folder).as_posix()))
    masks = list(dict.fromkeys(named.masks[path] for path in pictures if path in named.masks))
    known = _load_cache(cache)
    current: dict[str, tuple[tuple[int, int], _FileFacts]] = {}
    facts: list[PictureFacts] = []
    looked: dict[Path, _FileFacts] = {}
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        try:
            for done, (path, key, found) in enumerate(
                pool.map(lambda path: _look(path, known), [*masks, *pictures]), start=1
            ):
                if key is not None:
                    current[str(path)] = (key, found)
                looked[path] = found
                if progress is not None:
                    progress(done, len(masks) + len(pictures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for path in pictures:
        mask = named.masks.get(path)
        picture = _with_caption(path, folder, looked[path])
        facts.append(_with_mask(picture, folder, mask, looked[mask]) if mask else picture)
    if cache is not None and current != known:
        _save_cache(cache, current)
    problems = [*walked.problems, *(_orphan(path, folder) for path in named.orphans)]
    if not facts:
        problems.append(error("empty", "There are no pictures in this folder.", "Add JPEG, PNG or WebP files."))
    return DatasetScan(folder, tuple(_mark_clashes(facts)), tuple(problems))


def name_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """What sorts names into the order that people expect: 2 before 10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts], name


def _look(
    path: Path, known: dict[str, tuple[tuple[int, int], _FileFacts]]
) -> tuple[Path, tuple[int, int] | None, _FileFacts]:
    """Facts of one file, from the cache where the file is unchanged. The key is None where it cannot be remembered."""
    try:
        status = path.stat()
        key = (status.st_size, status.st_mtime_ns)
        if str(path) in known and known[str(path)][0] == key and os.access(path, os.R_OK):
            return path, key, known[str(path)][1]
        image, problems = None, ()
        try:
            read = read_picture(path)
            image, problems = read.image, read.problems
        except UnusablePicture as failure:
            problems = (failure.problem,)
            if failure.problem.code in ("unreadable", "missing", "not_a_file"):
                return path, None, _FileFacts(0, 0, "", problems)
        width, height = image.size if image is not None else (0, 0)
        return path, key, _FileFacts(width, height, file_sha256(path), problems)
    except OSError as failure:
        problem = error("unreadable", f"This file cannot be read ({failure.strerror or failure}).", "Copy it anew.")
        return path, None, _FileFacts(0, 0, "", (problem,))


def _with_caption(path: Path, folder: Path, found: _FileFacts) -> PictureFacts:
    beside = caption_path(path)
    read = read_caption(beside) if beside is not None else None
    return PictureFacts(
        path=path,
        name=path.relative_to(folder).as_posix(),
        width=found.width,
        height=found.height,
        sha256=found.sha256,
        caption=read.text if read else None,
        problems=(*found.problems, *(read.problems if read else ())),
        captions=read.all if read else (),
    )


def _with_mask(facts: PictureFacts, folder: Path, mask: Path, found: _FileFacts) -> PictureFacts:
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


def _load_cache(cache: Path | None) -> dict[str, tuple[tuple[int, int], _FileFacts]]:
    if cache is None:
        return {}
    try:
        data = json.loads(cache.read_text(encoding="utf-8"))
        if data["version"] != _CACHE_VERSION:
            return {}
        return {
            path: (
                (entry["size"], entry["mtime_ns"]),
                _FileFacts(
                    entry["width"], entry["height"], entry["sha256"], tuple(Problem(**p) for p in entry["problems"])
                ),
            )
            for path, entry in data["files"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("The index of pictures %s cannot be read; it is made anew", cache)
        return {}


def _save_cache(cache: Path, entries: dict[str, tuple[tuple[int, int], _FileFacts]]) -> None:
    files = {
        path: {"size": key[0], "mtime_ns": key[1], **asdict(found)} for path, (key, found) in sorted(entries.items())
    }
    try:
        write_json(cache, {"version": _CACHE_VERSION, "files": files}, "the index of pictures")
    except (ResourceError, OSError):
        # Without it the next scan takes longer, no more.
        log.warning("The index of pictures %s could not be saved", cache, exc_info=True)
