"""What every captioner is given and what it answers. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from trainer.dataset.scan import PictureFacts


@dataclass(frozen=True)
class Subject:
    """A picture to be described. `name` is its path below the data set's folder with `/`; `image` is RGB, as it is trained."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class Tag:
    """A word or phrase that holds for a picture. `score` is how sure that is, 0 to 1."""

    text: str
    score: float
    is_name: bool = False
    """Whether it is the name of a character, which a guide treats as such."""


@dataclass(frozen=True)
class Description:
    """What a captioner says of a picture: tags, or sentences."""

    tags: tuple[Tag, ...] = ()
    text: str = ""


class Captioner(Protocol):
    """A captioner that is loaded and ready."""

    def describe(self, subject: Subject) -> Description:
        """Say what is in a picture. Raises: InkwashError: as its message says."""
        ...


def subject_of(facts: PictureFacts) -> Subject:
    """Open a picture. Raises DatasetError: it cannot be read any more."""
    return Subject(facts.name, facts.open())
