"""Crops that are proposed: placed so that the subject stays in the part that is trained. Nothing is changed until they are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.config.data import DataConfig
from trainer.dataset.crops import Box, crop_of
from trainer.dataset.cuts import bucket_of, cut_of
from trainer.dataset.scan import PictureFacts
from trainer.dataset.subjects import Finder, Subject
from trainer.errors import DatasetError

_PADDING = 0.35
"""Of the subject's longer side, around it on every side, where the crop is to be close."""
_SUBJECT = 128
"""What is brighter in a mask is subject."""
VIEW_SIDE = 1024
"""px: the longer side of the views in which subjects are looked for."""
_LEAST_LOST, _LEAST_SHIFT = 0.01, 0.02


@dataclass(frozen=True)
class Proposal:
    """A crop for a picture, in px of the picture as it lies, and what was seen in it."""

    picture: str
    box: Box
    seen: str


def propose(
    facts: PictureFacts, image: Image.Image, find: Finder, config: DataConfig, *, close: bool = False
) -> Proposal | None:
    """A crop that keeps what `find` sees.

    Args:
        facts: of the picture.
        image: the whole picture, as it lies; it may be a small view of it.
        find: looks for the subject, where no mask says it.
        config: for which training; the crop has the shape of a bucket, so that nothing more is cut off it.
        close: closer to the subject, as long as that need not be enlarged; else as much of the picture as can be.

    Returns: None where no subject is seen, or where what is trained without a crop is as good.
    """
    whole = facts.whole_size
    plain = cut_of(facts.uncut, config, config.resolution)
    if not close and plain.lost < _LEAST_LOST:
        return None
    subject = _of_mask(facts) or find(image)
    if subject is None:
        return None
    box = _close(subject, whole, config) if close else _placed(subject, whole, plain.bucket.aspect_ratio, whole)
    shift = max(abs(a - b) for a, b in zip(box, plain.box, strict=True))
    try:
        crop = crop_of(box, whole)
    except ValueError:  # less than the smallest picture that can be trained on
        return None
    if crop is None or shift < _LEAST_SHIFT * max(whole):
        return None
    return Proposal(facts.name, crop.box, subject.seen)


def _of_mask(facts: PictureFacts) -> Subject | None:
    """Where a picture's mask says that its subject is. Raises DatasetError: it cannot be read any more."""
    if facts.mask is None:
        return None
    coverage = facts.mask.coverage().convert("L").point([255 * (value >= _SUBJECT) for value in range(256)])
    box = coverage.getbbox()
    if box is None:
        return None
    left, right = box[0] / coverage.width, box[2] / coverage.width
    top, bottom = box[1] / coverage.height, box[3] / coverage.height
    return Subject((left, top, right, bottom), "its mask")


def _close(subject: Subject, whole: tuple[int, int], config: DataConfig) -> Box:
    left, top, right, bottom = _pixels(subject, whole)
    padding = _PADDING * max(right - left, bottom - top)
    wanted = min(right - left + 2 * padding, whole[0]), min(bottom - top + 2 * padding, whole[1])
    bucket = bucket_of((round(wanted[0]), round(wanted[1])), config, config.resolution)
    # Not smaller than it is trained at: what is gained in size would be blur.
    size = max(wanted[0], bucket.width), max(wanted[1], bucket.height)
    return _placed(subject, whole, bucket.aspect_ratio, size)


def _placed(subject: Subject, whole: tuple[int, int], ratio: float, size: tuple[float, float]) -> Box:
    """The box of an aspect ratio that holds `size`, as far as the picture is large enough, with the subject in its middle where it can be."""
    width = max(size[0], size[1] * ratio)
    width = min(width, whole[0], whole[1] * ratio)
    cut = round(width), round(width / ratio)
    left, top, right, bottom = _pixels(subject, whole)
    starts = [
        round(min(max((low + high - length) / 2, 0), full - length))
        for low, high, length, full in ((left, right, cut[0], whole[0]), (top, bottom, cut[1], whole[1]))
    ]
    return starts[0], starts[1], min(starts[0] + cut[0], whole[0]), min(starts[1] + cut[1], whole[1])


def _pixels(subject: Subject, whole: tuple[int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = subject.box
    return left * whole[0], top * whole[1], right * whole[0], bottom * whole[1]


def propose_all(
    pictures: Iterable[PictureFacts],
    view: Callable[[PictureFacts], Path],
    find: Finder,
    config: DataConfig,
    *,
    close: bool = False,
) -> Iterator[Proposal | None]:
    """A proposal, or None, for each picture in turn; none for those that have a crop, or that cannot be read any more.

    `view` says where a small view of the whole picture lies.
    """
    for facts in pictures:
        if facts.crop is not None:
            yield None
            continue
        try:
            with Image.open(view(facts.uncut)) as image:
                yield propose(facts, image.convert("RGB"), find, config, close=close)
        except DatasetError:
            yield None  # the next scan says why
