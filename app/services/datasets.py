"""Data sets as the Dataset tab sees them: what there is, what lies in one, and what can be done. Knows no widgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from trainer.config.loading import build_bring_config
from trainer.dataset.bring_job import check_bringing, forget_dropped, keep_dropped, start_bringing, sweep_dropped
from trainer.dataset.bringing import Brought, link_all
from trainer.dataset.captions import caption_lines, fill_template
from trainer.dataset.dropped import Source
from trainer.dataset.problems import Problem
from trainer.dataset.scan import DatasetScan, PictureFacts, Progress
from trainer.dataset.store import DatasetInfo, DatasetStore
from trainer.errors import DatasetError
from trainer.files import write_atomically
from trainer.paths import DataFolder

log = logging.getLogger(__name__)

PAGE_SIZE = 60
_THUMBNAIL = 256
_LARGE = 1024
_SHOWN_PROBLEMS = 200
TEMPLATES = (
    ("The words of the file name", "{name}"),
    ("Trigger word, then the file name", "{trigger}, {name}"),
    ("The trigger word alone", "{trigger}"),
)
"""Built-in templates for captions, as (what it says, template)."""


@dataclass(frozen=True)
class ProblemRow:
    """A line of the list of problems. `where` is a picture's name, or empty for the data set as a whole."""

    where: str
    problem: Problem


@dataclass(frozen=True)
class DatasetView:
    """A data set and what lies in it."""

    info: DatasetInfo
    scan: DatasetScan
    num_excluded: int

    @property
    def pictures(self) -> tuple[PictureFacts, ...]:
        """All pictures, also those that cannot be used."""
        return self.scan.pictures

    @property
    def num_pages(self) -> int:
        """Pages of the gallery, at least 1."""
        return max(1, -(-len(self.pictures) // PAGE_SIZE))

    @property
    def summary(self) -> str:
        """Such as "24 pictures, 24 captions, 1 problem"."""
        rows = self.problem_rows()
        parts = [_count(len(self.pictures), "picture"), _count(self.scan.num_captions, "caption")]
        parts.append(_count(len(rows), "problem") if rows else "no problems")
        if self.num_excluded:
            parts.append(f"{self.num_excluded} left out")
        return ", ".join(parts)

    def problem_rows(self) -> list[ProblemRow]:
        """All problems, errors first."""
        rows = [ProblemRow("", problem) for problem in self.scan.problems]
        rows += [ProblemRow(facts.name, problem) for facts in self.pictures for problem in facts.problems]
        return sorted(rows, key=lambda row: not row.problem.is_error)

    def index_of(self, picture: str) -> int:
        """Where a picture is, by its name; 0 where it is gone."""
        return next((index for index, facts in enumerate(self.pictures) if facts.name == picture), 0)


@dataclass(frozen=True)
class PictureView:
    """One picture, large. `image` is None where it cannot be read."""

    facts: PictureFacts
    image: Path | None
    index: int
    total: int


class DatasetService:
    """What the Dataset tab asks and does. Keeps nothing but the store."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self.store = DatasetStore(data)
        for partial in (*self.store.sweep(), *sweep_dropped(data)):
            log.info("Removed %s, left by an import that did not end", partial)

    def choices(self) -> list[tuple[str, str]]:
        """(label, name) of every data set."""
        found = []
        for info in self.store.list():
            tail = (
                " · damaged"
                if info.problem
                else " · bundled"
                if info.is_bundled
                else " · folder"
                if info.is_linked
                else ""
            )
            found.append((f"{info.title} ({info.num_pictures}){tail}", info.name))
        return found

    def view(self, name: str, progress: Progress | None = None) -> DatasetView:
        """Scan a data set. Raises DatasetError."""
        info = self.store.get(name)
        return DatasetView(info, self.store.scan(name, progress=progress), len(self.store.excluded(info.name)))

    def tiles(self, view: DatasetView, page: int) -> list[tuple[str, str]]:
        """(thumbnail, label) of the pictures on a page, counted from 0."""
        shown = view.pictures[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        with ThreadPoolExecutor(max_workers=2) as pool:
            return list(zip(map(str, pool.map(self._tile, shown)), map(_label, shown), strict=True))

    def _tile(self, facts: PictureFacts) -> Path:
        if not facts.is_usable:
            return self._broken_tile()
        try:
            return self.store.thumbnail(facts, _THUMBNAIL)
        except DatasetError:
            log.warning("No thumbnail of %s", facts.path, exc_info=True)
            return self._broken_tile()

    def _broken_tile(self) -> Path:
        path = self._data.cache / "thumbnails" / "unusable.png"
        if not path.exists():
            image = Image.new("RGB", (_THUMBNAIL, _THUMBNAIL), "#e5e2da")
            draw = ImageDraw.Draw(image)
            for line in ((84, 84, 172, 172), (172, 84, 84, 172)):
                draw.line(line, fill="#b3261e", width=14)
            write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), "a thumbnail")
        return path

    def picture(self, view: DatasetView, index: int) -> PictureView | None:
        """The picture at an index, which wraps around; None where the data set is empty."""
        total = len(view.pictures)
        if not total:
            return None
        index %= total
        facts = view.pictures[index]
        try:
            image = self.store.thumbnail(facts, _LARGE) if facts.is_usable else None
        except DatasetError:
            log.warning("No large view of %s", facts.path, exc_info=True)
            image = None
        return PictureView(facts, image, index, total)

    def on_page(self, page: int, tile: int) -> int:
        """Index of a picture by its place on a page of the gallery."""
        return page * PAGE_SIZE + tile

    def save_caption(self, name: str, picture: str, caption: str) -> bool:
        """Keep captions, one a line, where they differ from what there is; returns whether they did. Raises DatasetError."""
        new = caption_lines(caption)
        if new == self.store.captions_of(name, picture):
            return False
        return self.store.write_captions(name, {picture: new})

    def start_import(self, name: str, files: Sequence[Source], trigger_word: str = "", *, is_new: bool) -> str:
        """Begin to copy dropped files into a new data set (several of kohya's folders) or one of ours. Returns the job's id.

        Raises: DatasetError, ConfigError: what can be seen to be wrong at once. ResourceError.
        """
        if not files:
            raise DatasetError("There are no pictures yet.", fix="Drop pictures, a folder or a zip first.")
        check_bringing(self._data, name, is_new=is_new, trigger_word=trigger_word)
        kept = keep_dropped(self._data, files)
        try:
            values = {"dataset": name, "is_new": is_new, "trigger_word": trigger_word, "sources": kept}
            return start_bringing(self._data, build_bring_config(values)).id
        except BaseException:
            forget_dropped(self._data, kept)
            raise

    def use_folder(self, path: str) -> Brought:
        """A folder where it is, as one data set, or one for each of kohya's folders in it. Raises DatasetError."""
        return link_all(self.store, path)

    def caption_missing(self, name: str, template: str) -> int:
        """Give every usable picture without a caption one from a template; returns how many got one. Raises DatasetError."""
        info, scan = self.store.get(name), self.store.scan(name)
        filled = {
            facts.name: fill_template(template, stem=facts.path.stem, trigger_word=info.trigger_word)
            for facts in scan.usable
            if not facts.caption
        }
        captions = {picture: caption for picture, caption in filled.items() if caption}
        if filled and not captions:
            raise DatasetError(
                "The template gives no words: the file names hold only numbers, or the trigger word is empty.",
                fix="Set a trigger word, or write some words into the template.",
            )
        if captions:
            self.store.set_captions(name, captions)
        return len(captions)


def shown_rows(rows: Sequence[ProblemRow]) -> tuple[Sequence[ProblemRow], int]:
    """The rows that a page can bear, and how many more there are."""
    return rows[:_SHOWN_PROBLEMS], max(0, len(rows) - _SHOWN_PROBLEMS)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _label(facts: PictureFacts) -> str:
    if not facts.is_usable:
        return f"✕ {facts.name}"
    mark = "⚠ " if facts.problems else ""
    return f"{mark}{facts.name} · {facts.width}×{facts.height}"
