"""What is asked of a grid: a picture for every combination of the values of up to three settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from trainer.config.base import BASIC, Hint, Level, Settings
from trainer.config.generate import GenerateConfig

AXIS_NAMES = ("x", "y", "z")
_ABOUT_PIXELS = Hint(Level.ADVANCED, unit="pixels")


class GridAxes(Settings):
    """What differs between the pictures of a grid."""

    x: Annotated[str, BASIC, Field(max_length=10_000)] = ""
    """What differs from left to right: a setting and its values, such as cfg=3,5,7 or lora:ink-wash=0-1:0.25."""
    y: Annotated[str, BASIC, Field(max_length=10_000)] = ""
    """What differs from top to bottom, in the same way."""
    z: Annotated[str, BASIC, Field(max_length=10_000)] = ""
    """What differs from one table of pictures to the next, in the same way."""
    cell: Annotated[int, _ABOUT_PIXELS, Field(ge=0, le=2048)] = 0
    """The longer side of a picture in the labelled one; 0 takes the pictures' own up to 512, and less where there are very many."""


class GridConfig(GridAxes, GenerateConfig):
    """A grid: the settings that all its pictures have in common, and what differs."""

    @model_validator(mode="after")
    def _is_a_grid(self) -> GridConfig:
        faults = []
        if not any((self.x, self.y, self.z)):
            faults.append("x: nothing differs: write a setting and its values, such as cfg=3,5,7")
        if self.count != 1:
            faults.append("count: a cell is one picture: put seeds on an axis instead, such as seed=1-4")
        if faults:
            raise ValueError("\n".join(faults))
        return self
