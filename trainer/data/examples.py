"""What is trained on: each picture with its caption as trained and the size it is cut to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.config.concept import ConceptConfig
from trainer.config.data import DataConfig, MaskSource
from trainer.data.randomness import generator_for
from trainer.dataset.buckets import Bucket, Offset, frame
from trainer.dataset.captions import compose_caption
from trainer.dataset.cuts import bucket_of
from trainer.dataset.masks import MaskFacts
from trainer.dataset.preparation import AS_IN_FILE, Preparation
from trainer.dataset.scan import PictureFacts


@dataclass(frozen=True)
class Example:
    """A picture of the data set, ready to be cached.

    Attributes:
        caption: as trained: its own or the instance prompt, with the trigger word.
        bucket: the size it is cut to.
        size: its width and height before it is cut to its bucket, in pixels: those of its crop where it has one.
        captions: all of its captions where it has several to draw from, the first of which is `caption`; else empty.
        mask: where its subject is said to be, if it is.
        concept: names its data set among those of the run; empty for the first.
        repeats: showings in an epoch.
        weight: of the loss on it.
        class_prompt: what prior preservation keeps for it; empty for what the settings of the first data set say.
        preparation: what the user did to its pixels: turn, background, crop.
    """

    name: str
    path: Path
    sha256: str
    caption: str
    bucket: Bucket
    size: tuple[int, int]
    captions: tuple[str, ...] = ()
    mask: MaskFacts | None = None
    concept: str = ""
    repeats: int = 1
    weight: float = 1.0
    class_prompt: str = ""
    preparation: Preparation = AS_IN_FILE

    @property
    def all_captions(self) -> tuple[str, ...]:
        """Every caption that it can be shown with, undropped."""
        return self.captions or (self.caption,)

    def frame(self, *, flipped: bool = False, offset: Offset | None = None) -> tuple[int, ...]:
        """How it is cut, as `trainer.dataset.buckets.frame` says it."""
        return frame(*self.size, self.bucket, flipped=flipped, offset=offset)


@dataclass(frozen=True)
class Split:
    """The pictures that are trained on, and those that the validation loss is measured on.

    `held_out` says whether the two are apart.
    """

    training: tuple[Example, ...]
    validation: tuple[Example, ...]
    held_out: bool


@dataclass(frozen=True)
class Concept:
    """A data set of a run with the words that it is trained with. `label` names it among the others; the first has none."""

    label: str
    pictures: tuple[PictureFacts, ...]
    settings: ConceptConfig


def make_examples(pictures: Sequence[PictureFacts], config: DataConfig, trigger_word: str) -> list[Example]:
    """The examples of a run's first data set, in order of their names."""
    first = config.model_copy(update={"trigger_word": trigger_word})
    return concept_examples(Concept("", tuple(pictures), first.all_concepts[0]), config)


def concept_examples(concept: Concept, config: DataConfig) -> list[Example]:
    """The examples of one data set at the main resolution, in order of their names."""
    prefix = f"{concept.label}: " if concept.label else ""
    return [
        Example(
            name=prefix + picture.name,
            path=picture.path,
            sha256=picture.sha256,
            caption=captions[0],
            bucket=bucket_of((picture.width, picture.height), config, config.resolution),
            size=(picture.width, picture.height),
            captions=captions if len(captions) > 1 else (),
            mask=mask_of(picture, config.masks),
            concept=concept.label,
            repeats=concept.settings.repeats,
            weight=concept.settings.weight,
            class_prompt=concept.settings.class_prompt if concept.label else "",
            preparation=picture.preparation,
        )
        for picture in sorted(concept.pictures, key=lambda picture: picture.name)
        for captions in [_captions(picture, concept.settings, config.several_captions)]
    ]


def _captions(picture: PictureFacts, words: ConceptConfig, several: bool) -> tuple[str, ...]:
    found = picture.captions if several and words.use_captions and picture.captions else (picture.caption,)
    composed = (compose_caption(text, words.trigger_word, words.instance_prompt, words.use_captions) for text in found)
    return tuple(dict.fromkeys(composed))


def mask_of(picture: PictureFacts, source: MaskSource) -> MaskFacts | None:
    """The mask of a picture, as far as the settings look for one."""
    if source in ("files", "any") and picture.mask is not None:
        return picture.mask
    # The scan says "transparent" of the pictures whose alpha channel is in use.
    if source in ("alpha", "any") and any(problem.code == "transparent" for problem in picture.problems):
        return MaskFacts(picture.path, picture.sha256, *picture.whole_size, picture.turn)
    return None


def at_all_resolutions(examples: Sequence[Example], config: DataConfig) -> list[Example]:
    """Each example at each resolution of the settings, the main one first; once where two give it the same size."""
    found = [
        replace(example, bucket=bucket_of(example.size, config, resolution))
        for resolution in config.resolutions
        for example in examples
    ]
    return list(dict.fromkeys([*examples, *found]))


def split_examples(examples: Sequence[Example], share: float, num_validation: int, seed: int) -> Split:
    """Hold a share out for validation; with a share of 0, or a single picture, the training pictures serve for both.

    Of each concept at least one picture is trained on.
    """
    order = torch.randperm(len(examples), generator=generator_for("validation pictures", seed)).tolist()
    left = Counter(example.concept for example in examples)
    held_out: list[int] = []
    num_held_out = max(1, round(share * len(examples))) if share > 0 else 0
    for index in order:
        concept = examples[index].concept
        if len(held_out) < num_held_out and left[concept] > 1:
            left[concept] -= 1
            held_out.append(index)
    if not held_out:
        chosen = sorted(order[:num_validation])
        return Split(tuple(examples), tuple(examples[index] for index in chosen), held_out=False)
    chosen = sorted(held_out[:num_validation])
    training = tuple(example for index, example in enumerate(examples) if index not in held_out)
    return Split(training, tuple(examples[index] for index in chosen), held_out=True)
