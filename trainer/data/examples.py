"""What is trained on: each picture with its caption as trained and the size it is cut to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config.data import DataConfig
from trainer.data.randomness import generator_for
from trainer.dataset.buckets import Bucket, assign_bucket, frame, make_buckets
from trainer.dataset.captions import compose_caption
from trainer.dataset.scan import PictureFacts


@dataclass(frozen=True)
class Example:
    """A picture of the data set, ready to be cached. `size` is its width and height before it is cut, in pixels."""

    name: str
    path: Path
    sha256: str
    caption: str
    bucket: Bucket
    size: tuple[int, int]

    def frame(self, *, flipped: bool = False) -> tuple[int, ...]:
        """How it is cut, as `trainer.dataset.buckets.frame` says it."""
        return frame(*self.size, self.bucket, flipped=flipped)


@dataclass(frozen=True)
class Split:
    """The pictures that are trained on, and those that the validation loss is measured on.

    `held_out` says whether the two are apart.
    """

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: bool


def make_examples(pictures: Sequence[PictureFacts], config: DataConfig, trigger_word: str) -> list[Example]:
    """The examples of a data set, in order of their names."""
    buckets = make_buckets(config.resolution, config.bucket_step, config.max_aspect_ratio)
    square = (Bucket(config.resolution, config.resolution),)
    return [
        Example(
            name=picture.name,
            path=picture.path,
            sha256=picture.sha256,
            caption=compose_caption(picture.caption, trigger_word, config.instance_prompt, config.use_captions),
            bucket=assign_bucket(picture.width, picture.height, buckets if config.buckets else square),
            size=(picture.width, picture.height),
        )
        for picture in sorted(pictures, key=lambda picture: picture.name)
    ]


def split_examples(examples: Sequence[Example], share: float, num_validation: int, seed: int) -> Split:
    """Hold a share out for validation; with a share of 0, or a single picture, the training pictures serve for both."""
    order = torch.randperm(len(examples), generator=generator_for("validation pictures", seed)).tolist()
    num_held_out = min(max(1, round(share * len(examples))), len(examples) - 1) if share > 0 else 0
    if num_held_out == 0:
        chosen = sorted(order[:num_validation])
        return Split(tuple(examples), tuple(examples[index] for index in chosen), held_out=False)
    held_out = set(order[:num_held_out])
    chosen = sorted(order[: min(num_held_out, num_validation)])
    training = tuple(example for index, example in enumerate(examples) if index not in held_out)
    return Split(training, tuple(examples[index] for index in chosen), held_out=True)
