"""Captions as the Dataset tab edits them: a page of pictures beside their captions, the tags, edits of all. Knows no widgets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trainer.base_models.listing import list_base_models
from trainer.dataset.caption_files import (
    Difference,
    ExportReport,
    Progress,
    caption_differences,
    export_captions,
    take_file_captions,
)
from trainer.dataset.captioned import (
    CaptionedPicture,
    CaptionFilter,
    EditPlan,
    Order,
    captioned_pictures,
    plan_edit,
)
from trainer.dataset.captions import caption_lines
from trainer.dataset.find_replace import Search, replace_text
from trainer.dataset.store import DatasetStore
from trainer.dataset.tags import ACTIONS, CaptionEdit, TagCount, count_tags, tag_edit, tag_key
from trainer.dataset.token_counts import EMBEDDED, TokenCounter, token_counter
from trainer.errors import DatasetError
from trainer.paths import DataFolder

log = logging.getLogger(__name__)

ROWS = 12
"""Pictures on a page."""
SHOWN_TAGS = 200
SHOWN_CHANGES = 30
THUMBNAIL = 256
ORDERS: tuple[tuple[str, Order], ...] = (
    ("Name", "name"),
    ("Shortest caption first", "shortest"),
    ("Longest caption first", "longest"),
    ("Fewest tags first", "fewest_tags"),
    ("Most tags first", "most_tags"),
)
EDITS: dict[str, str] = {"replace": "Find and replace", **ACTIONS}
"""What can be done to all captions that are shown."""


@dataclass(frozen=True)
class CaptionQuery:
    """Which captions are shown, and which page of them, from 0."""

    having: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    text: str = ""
    is_regex: bool = False
    order: Order = "name"
    tag_search: str = ""
    page: int = 0
    dataset: str = ""
    """What the tags were chosen of: another data set has others."""

    @property
    def filter(self) -> CaptionFilter:
        """Without the page."""
        search = Search(self.text, self.is_regex) if self.text else None
        return CaptionFilter(self.having, self.lacking, search, order=self.order)

    def on(self, dataset: str) -> CaptionQuery:
        """The same of a data set: of another one than before without its tags, from the first page on."""
        if dataset == self.dataset:
            return self
        return replace(self, dataset=dataset, having=(), lacking=(), page=0)

    def picked(self, tag: str) -> CaptionQuery:
        """After a click on a tag: first the pictures with it, then those without, then all; from the first page on."""
        key = tag_key(tag)
        having = tuple(other for other in self.having if tag_key(other) != key)
        lacking = tuple(other for other in self.lacking if tag_key(other) != key)
        if len(having) < len(self.having):
            lacking = (*lacking, tag)
        elif len(lacking) == len(self.lacking):
            having = (*having, tag)
        return replace(self, having=having, lacking=lacking, page=0)

    @property
    def is_narrowed(self) -> bool:
        """Whether not all pictures are meant."""
        return bool(self.having or self.lacking or self.text)


@dataclass(frozen=True)
class CaptionRow:
    """A picture with its captions and how many tokens each has."""

    picture: CaptionedPicture
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class CaptionPage:
    """A page of captions and the tags of all that the filter finds.

    `tags` are the most frequent, of `num_tags` in all; `query` is what was asked for, with a page that there is.
    """

    query: CaptionQuery
    rows: tuple[CaptionRow, ...]
    tags: tuple[TagCount, ...]
    num_tags: int
    num_found: int
    num_pictures: int

    @property
    def num_pages(self) -> int:
        """At least 1."""
        return max(1, -(-self.num_found // ROWS))


class CaptionService:
    """What the section "Captions" asks and does. Keeps nothing but the store."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self.store = DatasetStore(data)

    def bases(self) -> list[tuple[str, str]]:
        """(label, path) of the base models whose tokenizers can count, the embedded one first."""
        others = [info for info in list_base_models(self._data) if info.path != EMBEDDED]
        return [("Embedded model", ""), *((info.label, str(info.path)) for info in others)]

    def page(self, name: str, query: CaptionQuery, base: str = "") -> CaptionPage:
        """A page of captions. Raises DatasetError, ModelFileError."""
        pictures = captioned_pictures(self.store, name)
        found = query.filter.apply(pictures)
        counts = count_tags(picture.captions for picture in found)
        key = tag_key(query.tag_search)
        chosen = {tag_key(tag) for tag in (*query.having, *query.lacking)}
        asked = [item for item in counts if key in item.tag.casefold()] if key else counts
        # What is chosen stays in sight, so that it can be chosen no more.
        shown = [item for item in counts if item.tag.casefold() in chosen]
        shown += [item for item in asked if item.tag.casefold() not in chosen][: SHOWN_TAGS - len(shown)]
        page = max(0, min(query.page, -(-len(found) // ROWS) - 1))
        on_page = found[page * ROWS : (page + 1) * ROWS]
        query = replace(query, page=page)
        rows = tuple(
            CaptionRow(picture, tokens) for picture, tokens in zip(on_page, self._tokens(on_page, base), strict=True)
        )
        return CaptionPage(query, rows, tuple(shown), len(asked), len(found), len(pictures))

    def _tokens(self, pictures: Sequence[CaptionedPicture], base: str) -> list[tuple[int, ...]]:
        counts = iter(_counter(base, self._data).count([text for picture in pictures for text in picture.captions]))
        return [tuple(next(counts) for _ in picture.captions) for picture in pictures]

    def tokens(self, text: str, base: str = "") -> list[int]:
        """Tokens of each caption of a text that has one a line. Raises ModelFileError."""
        return _counter(base, self._data).count(caption_lines(text))

    def thumbnail(self, picture: CaptionedPicture) -> Path | None:
        """A small view of a picture; None where it cannot be read."""
        try:
            return self.store.thumbnail(picture.facts, THUMBNAIL)
        except DatasetError:
            log.warning("No thumbnail of %s", picture.facts.path, exc_info=True)
            return None

    def save(self, name: str, picture: str, text: str) -> tuple[str, ...] | None:
        """Keep the captions of a picture, one a line, where they differ from what there is; None where they do not.

        Raises: DatasetError: there is no such picture.
        """
        new = caption_lines(text)
        info = self.store.get(name)
        if new == self.captions_of(name, picture):
            return None
        self.store.write_captions(info.name, {picture: new})
        return new

    def captions_of(self, name: str, picture: str) -> tuple[str, ...]:
        """The captions that a picture has now. Raises DatasetError."""
        return self.store.captions_of(name, picture)

    # --- all at once ---------------------------------------------------------------------------------------------

    def edit(
        self, action: str, what: str, new: str, *, is_regex: bool = False, matches_case: bool = False, trigger: str = ""
    ) -> CaptionEdit:
        """An edit of `EDITS`: what is to be found, or the tags, and what takes their place. Raises DatasetError."""
        if action == "replace":
            return replace_text(Search(what, is_regex, not matches_case), new)
        return tag_edit(action, what, new, trigger_word=trigger)

    def plan(self, name: str, query: CaptionQuery, edit: CaptionEdit) -> EditPlan:
        """What an edit makes of all that the query finds, whatever page. Raises DatasetError."""
        return plan_edit(query.filter.apply(captioned_pictures(self.store, name)), edit)

    def apply(self, name: str, query: CaptionQuery, edit: CaptionEdit) -> EditPlan:
        """Do it, as one change that can be undone. Raises DatasetError."""
        plan = self.plan(name, query, edit)
        if plan.changes:
            self.store.write_captions(name, plan.values, plan.title)
        return plan

    # --- files ---------------------------------------------------------------------------------------------------

    def differences(self, name: str) -> list[Difference]:
        """Where files beside the pictures say something else than the data set. Raises DatasetError."""
        return caption_differences(self.store, name)

    def export(self, name: str, *, overwrite: bool = False, progress: Progress | None = None) -> ExportReport:
        """Write the captions beside the pictures. Raises DatasetError, ResourceError."""
        return export_captions(self.store, self._data, name, overwrite=overwrite, progress=progress)

    def take(self, name: str) -> int:
        """Let the files say the captions again. Raises DatasetError."""
        return take_file_captions(self.store, name)


@lru_cache(maxsize=8)
def _counter(base: str, data: DataFolder) -> TokenCounter:
    return token_counter(base, data)
