"""Pictures and captions of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.base import BASIC, Hint, Settings
from trainer.config.concept import ConceptConfig, one_line

ResolutionInt = Annotated[int, Field(ge=32, le=2048, multiple_of=8)]
MaskSource = Literal["off", "files", "alpha", "any"]


class PriorConfig(Settings):
    """Prior preservation (DreamBooth, arXiv 2208.12242): class pictures keep the model from forgetting what the class looked like."""

    class_prompt: str = ""
    """Prompt of the class pictures, such as "a robot" for a character that is one. Empty: what the data set of class pictures says; without one, prior preservation is off."""
    source: Literal["class_pictures", "base_prediction"] = "class_pictures"
    """What is kept: `class_pictures` makes pictures of the prompt first and trains on them too; `base_prediction` needs none: with that prompt the model must predict for your pictures what the base model does."""
    dataset: str = ""
    """Class pictures of your own: a data set or a folder. Their own captions are used, and the class prompt where there is none. Empty: they are generated. Not for base_prediction."""
    num_class_images: Annotated[int, Field(ge=1, le=2000)] = 50
    """How many class pictures are generated with the base model before training. More keep the class better and take longer once; they are kept for the next run. Not for base_prediction."""
    weight: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Weight of this loss against the loss on your pictures and captions. Lower if the character is not learned."""


class DataConfig(Settings):
    """Pictures, captions and how they are cut to size."""

    dataset: Annotated[str, BASIC] = ""
    """The data set: the name of one in the Dataset tab, or the path of a folder with pictures. The folder is only read."""
    trigger_word: Annotated[str, BASIC, Field(max_length=200)] = ""
    """A word that calls up what is learned. It is put in front of every caption that lacks it. Empty: the captions are used as they are."""
    instance_prompt: Annotated[str, Field(max_length=2000)] = ""
    """Caption for pictures that have none, such as "a photo of zib robot". Empty: the trigger word alone."""
    use_captions: bool = True
    """Use each picture's own caption. Off: every picture gets the instance prompt (classic DreamBooth)."""
    resolution: Annotated[int, Hint(BASIC.level, unit="px"), Field(ge=32, le=2048, multiple_of=8)] = 512
    """Side of the square whose area the training pictures have. Higher shows finer detail; time and memory grow with its square. Use the base model's own: 512 for SD 1.5."""
    buckets: bool = True
    """Keep each picture's shape by grouping pictures of like aspect ratio. Off: a centred square is cut from each."""
    bucket_step: Annotated[int, Hint(unit="px"), Field(ge=8, le=256, multiple_of=8)] = 64
    """Bucket sides are multiples of this. Smaller cuts less off the pictures and makes more, smaller groups."""
    max_aspect_ratio: Annotated[float, Field(ge=1, le=8)] = 2.0
    """The longest shape a bucket may have; pictures longer than this lose their ends."""
    horizontal_flip: bool = False
    """Show half of the pictures mirrored. Doubles a small style set; turn off for characters with a left and a right."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each picture is shown in an epoch. Changes what an epoch is, not the number of steps."""
    concepts: list[ConceptConfig] = []
    """Further data sets that the same LoRA learns from, each with its own trigger word, repeats and weight."""
    weight: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Weight of the loss on this data set's pictures against those of the further concepts."""
    balance: Literal["pictures", "concepts"] = "pictures"
    """What is shown equally often where there are several concepts: `pictures`, so that a larger data set is seen more; or `concepts`, so that each data set has the same share, however small. Repeats multiply either."""
    resolutions: Annotated[list[ResolutionInt], Hint(unit="px")] = []
    """Further resolutions: each picture is shown at each of them as well, in batches of one size. The LoRA then works at several sizes; an epoch and the caches grow."""
    bucket_no_upscale: bool = False
    """Pictures smaller than the resolution are not enlarged: they are trained at their own size. Against the blur that enlarging brings."""
    crop_variants: Annotated[int, Field(ge=0, le=32)] = 0
    """Where a picture is longer than its bucket, this many cuts at random places take turns instead of the centre; each is cached. 0: the centre alone."""
    colour_variants: Annotated[int, Field(ge=0, le=32)] = 0
    """This many copies of each picture with other brightness, contrast and saturation take turns with the picture itself; each is cached. For characters and objects, not for styles, whose colours they blur. 0: none."""
    colour_jitter: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """How far brightness, contrast and saturation of those copies go: 0.1 is 10 percent to either side. Only for colour_variants."""
    masks: MaskSource = "off"
    """Where it is said which part of a picture is its subject: `files`: painted in the Dataset tab, or beside the picture (`cat-masklabel.png`, `cat.mask.png`, or `masks/cat.png`; white is the subject), its `alpha` channel, or `any` of them, files first. The loss then counts little elsewhere: see objective.mask_floor."""
    several_captions: bool = False
    """Each line of a caption file is a caption of its own, and one is drawn each time. Off: the lines are read as one. A `.json` file holds a list of captions; off, its first is used."""
    max_caption_tokens: Literal[75, 150, 225] = 225
    """Captions longer than this are cut. Beyond 75 they are read in chunks of 75 tokens, as other programs read long prompts."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of pictures shown with an empty caption. Some of it makes the style also follow without words and helps guidance."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption each time, so that their order means nothing. For tags, not sentences."""
    keep_tags: Annotated[int, Field(ge=0, le=50)] = 1
    """How many parts at the front stay in place, and stay at all, when tags are shuffled or dropped (the trigger word)."""
    tag_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a caption's comma-separated parts left out each time, against tags that only work together. 0.05 to 0.1 for tags, not sentences."""
    wildcards: bool = False
    """Choose one of the words of each {red|crimson} in a caption anew each time. Off: braces are ordinary characters."""
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the pictures held out of training and used for the validation loss. 0: the training pictures are used, with noise never seen in training."""
    prior: PriorConfig = PriorConfig()
    """Prior preservation."""

    @field_validator("trigger_word", "instance_prompt")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return one_line(value)

    @property
    def all_resolutions(self) -> tuple[int, ...]:
        """The resolution and the further ones."""
        return (self.resolution, *self.resolutions)

    @property
    def all_concepts(self) -> tuple[ConceptConfig, ...]:
        """The data set and the further ones, each with its own words."""
        # Not validated again: no data set may be chosen yet.
        first = ConceptConfig.model_construct(
            dataset=self.dataset,
            trigger_word=self.trigger_word,
            repeats=self.repeats,
            weight=self.weight,
            instance_prompt=self.instance_prompt,
            class_prompt=self.prior.class_prompt,
            use_captions=self.use_captions,
        )
        return (first, *self.concepts)


Fault = tuple[str, str]
"""A field's path, and what is wrong with the remedy."""


def data_faults(data: DataConfig) -> list[Fault]:
    """Settings of the data that do not go together."""
    return [*_size_faults(data), *_caption_faults(data), *_concept_faults(data), *_prior_faults(data)]


def _size_faults(data: DataConfig) -> list[Fault]:
    faults: list[Fault] = []
    if data.buckets and data.bucket_step > min(data.all_resolutions):
        which = "data.resolution" if data.bucket_step > data.resolution else "the smallest of data.resolutions"
        faults.append(("data.bucket_step", f"must not be larger than {which}"))
    if len(set(data.all_resolutions)) < len(data.all_resolutions):
        faults.append(("data.resolutions", "names a resolution twice, or data.resolution itself: each is used once"))
    return faults


def _caption_faults(data: DataConfig) -> list[Fault]:
    if data.use_captions or data.instance_prompt or data.trigger_word:
        return []
    needed = "without captions every picture needs it: write one, or turn data.use_captions on"
    return [("data.instance_prompt", needed)]


def _concept_faults(data: DataConfig) -> list[Fault]:
    faults: list[Fault] = []
    if data.balance == "concepts" and not data.concepts:
        faults.append(("data.balance", "there is one data set only: add data.concepts, or set it back to pictures"))
    seen = {data.dataset}
    for index, concept in enumerate(data.concepts):
        at = f"data.concepts.{index}"
        if concept.dataset in seen:
            faults.append((f"{at}.dataset", f"'{concept.dataset}' is there already: give it repeats instead"))
        seen.add(concept.dataset)
        if not concept.use_captions and not (concept.instance_prompt or concept.trigger_word):
            faults.append((f"{at}.instance_prompt", "without captions every picture needs it: write one"))
        if concept.class_prompt and not data.prior.class_prompt:
            faults.append(("data.prior.class_prompt", f"write one too, or take that of '{concept.dataset}' away"))
    return faults


def _prior_faults(data: DataConfig) -> list[Fault]:
    prior, faults = data.prior, list[Fault]()
    if prior.dataset and not prior.class_prompt:
        faults.append(("data.prior.class_prompt", "say what the class pictures show, or choose no data set of them"))
    if prior.source == "base_prediction" and not prior.class_prompt:
        faults.append(("data.prior.class_prompt", "say with which prompt the base model's prediction is kept"))
    if prior.dataset and prior.source == "base_prediction":
        faults.append(("data.prior.dataset", "base_prediction needs no pictures: choose class_pictures, or empty it"))
    return faults
