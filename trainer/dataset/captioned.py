"""The captions of a data set, to be edited: chosen, put in order, changed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from trainer.dataset.captions import MAX_CAPTION_CHARACTERS, caption_lines
from trainer.dataset.catalog import DatasetCatalog
from trainer.dataset.find_replace import Search, TimedPattern
from trainer.dataset.scan import PictureFacts, Progress
from trainer.dataset.tags import CaptionEdit, split_tags, tag_key, tag_keys
from trainer.errors import DatasetError

Order = Literal["name", "shortest", "longest", "fewest_tags", "most_tags"]


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture and its captions, mostly one; `name` is its path below the data set's folder with `/`."""

    facts: PictureFacts

    @property
    def name(self) -> str:
        """As the data set calls it."""
        return self.facts.name

    @property
    def captions(self) -> tuple[str, ...]:
        """Those that it has now."""
        return self.facts.captions

    @property
    def text(self) -> str:
        """The captions, one a line."""
        return "\n".join(self.captions)

    @cached_property
    def tags(self) -> frozenset[str]:
        """The tags of its captions, in lower case."""
        return tag_keys(self.captions)


@dataclass(frozen=True)
class CaptionChange:
    """What an edit makes of a picture's captions."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class CaptionFilter:
    """Which pictures are meant, and in which order.

    Attributes:
        having: tags that all of them have.
        lacking: tags that none of them has.
        search: what one of the captions has, if anything is looked for.
        uncaptioned: only those without a caption.
    """

    having: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    search: Search | None = None
    uncaptioned: bool = False
    order: Order = "name"

    def apply(self, pictures: Sequence[CaptionedPicture]) -> list[CaptionedPicture]:
        """Those of `pictures`, given by name, that are meant. Raises DatasetError: the search is wrong, or takes too long."""
        having = frozenset(map(tag_key, self.having))
        lacking = frozenset(map(tag_key, self.lacking))
        found = [
            picture
            for picture in pictures
            if (not having or having <= picture.tags)
            and (not lacking or lacking.isdisjoint(picture.tags))
            and not (self.uncaptioned and picture.text)
        ]
        if self.search is not None:
            pattern = TimedPattern(self.search)
            found = [picture for picture in found if pattern.found_in(picture.text)]
        return _sorted(found, self.order)


def _sorted(pictures: list[CaptionedPicture], order: Order) -> list[CaptionedPicture]:
    if order == "name":
        return pictures
    amount: Callable[[CaptionedPicture], int] = (
        (lambda picture: sum(len(split_tags(caption)) for caption in picture.captions))
        if order in ("fewest_tags", "most_tags")
        else (lambda picture: len(picture.text))
    )
    # Stable both ways: pictures that are alike stay in the order of their names.
    sign = -1 if order in ("longest", "most_tags") else 1
    return sorted(pictures, key=lambda picture: sign * amount(picture))


def captioned_pictures(
    catalog: DatasetCatalog, name_or_path: str | Path, progress: Progress | None = None
) -> list[CaptionedPicture]:
    """All pictures of a data set that are not left out, by name, with the captions that they have now: from the record, a
    file beside it, a table or the picture itself.

    Raises: DatasetError: the folder is missing or may not be read, or the record is damaged.
    """
    scan = catalog.scan(name_or_path, progress=progress)
    return [CaptionedPicture(facts) for facts in scan.pictures]


@dataclass(frozen=True)
class EditPlan:
    """What an edit would do. `num_pictures` is how many it looked at."""

    title: str
    changes: tuple[CaptionChange, ...]
    num_pictures: int

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """The captions that the edit makes, by picture name, as `DatasetStore.write_captions` takes them."""
        return {change.name: change.after for change in self.changes}


def plan_edit(pictures: Sequence[CaptionedPicture], edit: CaptionEdit) -> EditPlan:
    """What `edit` makes of the captions of `pictures`; nothing is written.

    A picture without a caption counts as one with an empty caption, so that tags can be added to it. Captions that become
    alike stay once, and those that become empty go.

    Raises: DatasetError: an expression takes too long, or a caption becomes longer than captions may be.
    """
    changes = []
    for picture in pictures:
        edited = [edit.change(caption) for caption in picture.captions or ("",)]
        too_long = next((caption for caption in edited if len(caption) > MAX_CAPTION_CHARACTERS), None)
        if too_long is not None:
            raise DatasetError(
                f"This would make a caption longer than {MAX_CAPTION_CHARACTERS} characters; nothing was changed.",
                where=picture.name,
                fix="Choose a shorter replacement.",
            )
        after = caption_lines("\n".join(edited))
        if after != picture.captions:
            changes.append(CaptionChange(picture.name, picture.captions, after))
    return EditPlan(edit.title, tuple(changes), len(pictures))
