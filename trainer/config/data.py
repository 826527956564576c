"""Pictures and captions of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.base import BASIC, Hint, Settings


class PriorConfig(Settings):
    """Prior preservation (DreamBooth, arXiv 2208.12242): class pictures keep the model from forgetting what the class looked like."""

    class_prompt: str = ""
    """Prompt of the class pictures, such as "a robot" for a character that is one. Empty turns prior preservation off."""
    source: Literal["class_pictures", "base_prediction"] = "class_pictures"
    """What is kept: `class_pictures` makes pictures of the prompt first and trains on them too; `base_prediction` needs none: with that prompt the model must predict for your pictures what the base model does."""
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
        if any(ord(char) < 32 for char in value):
            raise ValueError("must be one line without control characters")
        return value
