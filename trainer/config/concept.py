"""A further data set of a run: another character, another style, learned in the same LoRA."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from trainer.config.base import Hint, Level, Settings


def _column(label: str) -> Hint:
    return Hint(Level.BASIC, label=label)


class ConceptConfig(Settings):
    """A further data set of the run, with words of its own. On the command line: `robot; trigger_word=zib robot; repeats=2`."""

    dataset: Annotated[str, _column("Data set"), Field(min_length=1)]
    """The name of a data set, or the path of a folder with pictures."""
    trigger_word: Annotated[str, _column("Trigger word"), Field(max_length=200)] = ""
    """The word that calls up this concept, put in front of its captions. Empty: the captions are used as they are."""
    repeats: Annotated[int, _column("Repeats"), Field(ge=1, le=1000)] = 1
    """How often each of its pictures is shown in an epoch; with data.balance concepts, its share against the others'."""
    weight: Annotated[float, _column("Weight"), Field(ge=0, le=10)] = 1.0
    """Weight of the loss on its pictures. 1 counts as much as any."""
    instance_prompt: Annotated[str, _column("Caption where there is none"), Field(max_length=2000)] = ""
    """Caption for its pictures that have none. Empty: the trigger word alone."""
    class_prompt: Annotated[str, _column("Class prompt"), Field(max_length=2000)] = ""
    """What is kept by prior preservation for it, such as "a robot". Empty: what data.prior.class_prompt says."""
    use_captions: Annotated[bool, _column("Own captions")] = True
    """Use each picture's own caption. Off: every picture gets the instance prompt."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return parse_concept(value)

    @field_validator("dataset", "trigger_word", "instance_prompt", "class_prompt")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return one_line(value)


def parse_concept(value: Any) -> Any:
    """A concept written as one text, `NAME; setting=value; …`, as a dict; anything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    dataset, *rest = (part.strip() for part in value.split(";"))
    settings: dict[str, Any] = {"dataset": dataset}
    for part in filter(None, rest):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' is no setting: write NAME; trigger_word=zib; repeats=2")
        settings[name.strip()] = text.strip()
    return settings


def one_line(value: str) -> str:
    """A text as it is. Raises ValueError where it holds line ends or control characters."""
    if any(ord(char) < 32 for char in value):
        raise ValueError("must be one line without control characters")
    return value
