"""The base class of all settings and the hints that a field can carry for forms and docs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Level(Enum):
    """Who needs a field: it stands in the form at once, or under Advanced."""

    BASIC = "basic"
    ADVANCED = "advanced"


@dataclass(frozen=True)
class Hint:
    """What a form needs beside type and range. Which widget is the form's business."""

    level: Level = Level.ADVANCED
    unit: str = ""
    label: str = ""
    names: Literal["", "lora", "model"] = ""
    """What a text, or each entry of a list, is the name or path of."""


BASIC = Hint(Level.BASIC)


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values do not change, docstrings below fields are the help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )
