"""What will be trained of each picture: its size, the part that is cut out, and what is lost. The trainer and the preview ask the same functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from trainer.config.data import DataConfig
from trainer.dataset.buckets import (
    Bucket,
    assign_bucket,
    crop_box,
    fit_picture,
    is_enlarged,
    make_buckets,
    own_bucket,
    room,
)
from trainer.dataset.scan import PictureFacts


def bucket_of(size: tuple[int, int], config: DataConfig, resolution: int) -> Bucket:
    """The size that a picture of `size` (width, height) is cut to at a resolution."""
    ratio = config.max_aspect_ratio if config.buckets else 1.0
    bucket = Bucket(resolution, resolution)
    if config.buckets:
        bucket = assign_bucket(*size, make_buckets(resolution, config.bucket_step, ratio))
    if config.bucket_no_upscale and is_enlarged(*size, bucket):
        return own_bucket(*size, resolution, config.bucket_step, ratio)
    return bucket


@dataclass(frozen=True)
class Cut:
    """How a picture is trained at one resolution, with the centre of it cut out.

    Attributes:
        facts: the picture.
        bucket: the size that it is cut to.
        box: what is trained: (left, top, right, bottom) in px of the picture as it lies, without its crop.
        lost: share of the picture's area, or of its crop's, that the bucket cuts off.
        scale: factor that its pixels are scaled by; above 1 it is enlarged, and what is added is blur.
        room: px of the trained size by which random cuts (`data.crop_variants`) can lie elsewhere, across and down.
    """

    facts: PictureFacts
    bucket: Bucket
    box: tuple[float, float, float, float]
    lost: float
    scale: float
    room: tuple[int, int]

    def picture(self) -> Image.Image:
        """The trained picture itself: RGB in the bucket's size, to the pixel. Raises DatasetError: it cannot be read any more."""
        return fit_picture(self.facts.open(), self.bucket)


def cut_of(facts: PictureFacts, config: DataConfig, resolution: int) -> Cut:
    """How a usable picture is trained at a resolution."""
    size = facts.width, facts.height
    bucket = bucket_of(size, config, resolution)
    box = crop_box(*size, bucket)
    width, height = box[2] - box[0], box[3] - box[1]
    return Cut(
        facts=facts,
        bucket=bucket,
        box=box if facts.crop is None else facts.crop.widen(box),
        lost=max(0.0, 1 - width * height / (size[0] * size[1])),
        scale=bucket.width / width,
        room=room(*size, bucket),
    )


def cuts_of(pictures: Iterable[PictureFacts], config: DataConfig) -> list[Cut]:
    """Every usable picture at every resolution of the settings, in the order of the pictures; once where two give it the same size."""
    found: list[Cut] = []
    for facts in pictures:
        if facts.is_usable:
            cuts: dict[Bucket, Cut] = {}
            for resolution in config.all_resolutions:
                cut = cut_of(facts, config, resolution)
                cuts.setdefault(cut.bucket, cut)
            found += cuts.values()
    return found


@dataclass(frozen=True)
class BucketRow:
    """A bucket with its pictures: how many, what they lose on the mean and at most, and how many of them are enlarged."""

    bucket: Bucket
    num_pictures: int
    mean_lost: float
    most_lost: float
    num_enlarged: int


def bucket_rows(cuts: Sequence[Cut]) -> list[BucketRow]:
    """The buckets that have pictures, those with most pictures first."""
    members: dict[Bucket, list[Cut]] = defaultdict(list)
    for cut in cuts:
        members[cut.bucket].append(cut)
    rows = [
        BucketRow(
            bucket,
            len(found),
            sum(cut.lost for cut in found) / len(found),
            max(cut.lost for cut in found),
            sum(cut.scale > 1 for cut in found),
        )
        for bucket, found in members.items()
    ]
    return sorted(rows, key=lambda row: (-row.num_pictures, row.bucket))
