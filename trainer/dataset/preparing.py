"""Changing how pictures of a data set are prepared: turns, crops and masks, as changes of its record that can be undone. No picture file is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from trainer.dataset.backgrounds import checked_colour
from trainer.dataset.crops import crop_of
from trainer.dataset.painted import MaskEntry, keep_mask, subject_share
from trainer.dataset.record import BACKGROUNDS, CROPS, MASKS, TURNS
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.turns import back, checked_turn, turned
from trainer.errors import DatasetError


def usable_pictures(store: DatasetStore, name: str, pictures: Sequence[str] = ()) -> dict[str, PictureFacts]:
    """The usable pictures of a data set by name: all, or those that are named.

    Raises: DatasetError: there is no such data set, or no such usable picture.
    """
    known = {facts.name: facts for facts in store.scan(name).usable}
    for picture in pictures:
        if picture not in known:
            raise DatasetError(
                "This is no usable picture of the data set.",
                where=picture[:300],
                fix="`inkwash dataset NAME` lists them.",
            )
    return {picture: known[picture] for picture in pictures} if pictures else known


def set_crops(store: DatasetStore, name: str, boxes: Mapping[str, Sequence[float] | None], title: str = "") -> bool:
    """Crop pictures, as one change that can be undone.

    Args:
        store: the data sets.
        name: the data set.
        boxes: by picture name: left, top, right, bottom in px of the upright picture as it is turned, or None for the whole picture.
        title: what the history says of it.

    Returns: whether anything was not so already.
    Raises: DatasetError: there is no such picture, or a crop does not lie inside it or is too small; then nothing is changed.
    """
    known = usable_pictures(store, name, list(boxes))
    values: dict[tuple[str, str], Any] = {}
    for picture, box in boxes.items():
        values[CROPS, picture] = None if box is None else _checked(known[picture], box)
    return store.change(store.get(name).name, title or _title(boxes), values)


def turn_pictures(store: DatasetStore, name: str, pictures: Sequence[str], degrees: int | None) -> bool:
    """Turn pictures as they lie now, with their crops and masks, as one change that can be undone.

    Args:
        store: the data sets.
        name: the data set.
        pictures: their names, at least one.
        degrees: clockwise, in quarters; negative ones turn the other way. None: as their files have them.

    Returns: whether anything was not so already.
    Raises: DatasetError: there is no such picture, or the degrees are no quarters.
    """
    known = usable_pictures(store, name, pictures)
    by = None if degrees is None else checked_turn(degrees)
    # A picture whose turn comes back to 0 has no entry any more.
    turns = {picture: None if by is None else (known[picture].turn + by) % 360 or None for picture in pictures}
    what = pictures[0] if len(pictures) == 1 else f"{len(pictures)} pictures"
    title = f"No turn of {what}" if by is None else f"Turned {what} by {by}° clockwise"
    return store.change(store.get(name).name, title, {(TURNS, key): turn for key, turn in turns.items()})


def set_mask(store: DatasetStore, name: str, picture: str, mask: Image.Image | None) -> bool:
    """Keep a mask of a picture in the record, or take the one of the record away, as a change that can be undone.

    Args:
        store: the data sets.
        name: the data set.
        picture: its name.
        mask: grey, of the whole picture as it is turned, in any size; white is the subject. None: the file beside the picture counts
            again, if there is one.

    Returns: whether anything was not so already.
    Raises: DatasetError: there is no such picture, or nothing is white. ResourceError: the disk is full.
    """
    facts = usable_pictures(store, name, [picture])[picture]
    if mask is None:
        return store.change(store.get(name).name, f"No mask of {picture}", {(MASKS, picture): None})
    return set_masks(store, name, {picture: keep_new_mask(store, name, facts, mask)}, f"Mask of {picture}")


def keep_new_mask(store: DatasetStore, name: str, facts: PictureFacts, mask: Image.Image) -> MaskEntry:
    """Write a mask of a picture, as that is turned, into the record's folder; it counts once `set_masks` says so. Raises DatasetError: nothing is white."""
    info = store.get(name)
    if info.record is None:
        raise DatasetError("This folder was never made a data set.", where=info.title, fix="Link it first.")
    if subject_share(mask) == 0:
        raise DatasetError("Nothing is painted: the mask would leave nothing to learn.", where=facts.name)
    return keep_mask(info.record, turned(mask, back(facts.turn)))


def set_masks(store: DatasetStore, name: str, entries: Mapping[str, MaskEntry], title: str) -> bool:
    """Let masks count that were kept, as one change that can be undone; returns whether anything was not so already."""
    return store.change(store.get(name).name, title, {(MASKS, key): list(entry) for key, entry in entries.items()})


def set_backgrounds(store: DatasetStore, name: str, pictures: Sequence[str], colour: str | None) -> bool:
    """Fill the backgrounds of pictures that have a mask, or leave them as they are (None), as one change that can be undone.

    Returns: whether anything was not so already.
    Raises: DatasetError: there is no such picture, one has no mask, or the colour is none.
    """
    known = usable_pictures(store, name, pictures)
    kept = None if colour is None else checked_colour(colour)
    for picture in pictures:
        if kept is not None and known[picture].mask is None:
            raise DatasetError(
                "This picture has no mask, so it cannot be told where its background is.",
                where=picture,
                fix="Paint one, or let a model make it.",
            )
    what = pictures[0] if len(pictures) == 1 else f"{len(pictures)} pictures"
    title = f"Background of {what} filled with {kept}" if kept else f"Own background of {what}"
    return store.change(store.get(name).name, title, {(BACKGROUNDS, picture): kept for picture in pictures})


def _checked(facts: PictureFacts, box: Sequence[float]) -> list[int] | None:
    try:
        crop = crop_of(box, facts.whole_size)
    except ValueError as error:
        width, height = facts.whole_size
        raise DatasetError(
            f"The picture cannot be cropped: {error}.",
            where=facts.name,
            fix=f"Left and right go from 0 to {width}, top and bottom from 0 to {height}.",
        ) from error
    return None if crop is None else list(facts.kept_box(crop.box))


def _title(boxes: Mapping[str, Sequence[float] | None]) -> str:
    what = next(iter(boxes)) if len(boxes) == 1 else f"{len(boxes)} pictures"
    return f"Crop of {what}" if any(box is not None for box in boxes.values()) else f"No crop of {what}"
