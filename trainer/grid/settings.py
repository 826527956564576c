"""What the parts of a grid are made of. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.paths import DataFolder

Change = Callable[[dict[str, Any]], dict[str, Any]]
"""Plain values of GenerateConfig to those of a cell."""


@dataclass(frozen=True)
class Choice:
    """A value of an axis.

    Attributes:
        label: for people.
        change: what it makes of the settings.
        at: where it stands in the axis's text, from 0.
        is_prompt: whether it changes a prompt, or the number of steps that tags count in: it is applied before LoRA tags are read.
    """

    label: str
    change: Change
    at: int
    is_prompt: bool = False


@dataclass(frozen=True)
class Axis:
    """What differs along one side of a grid.

    Attributes:
        title: stands before each label; empty where they say it themselves.
        target: what it changes: no two axes have the same.
        choices: the values, in order.
    """

    title: str
    target: str
    choices: tuple[Choice, ...]

    def labels(self) -> list[str]:
        """What is written beside the pictures."""
        return [f"{self.title} {choice.label}".strip() for choice in self.choices]


@dataclass(frozen=True)
class GridSettings:
    """What all cells have in common, for those who read the axes.

    Attributes:
        values: plain values of GenerateConfig, prompts as typed.
        stack: the LoRAs on it, those of the prompt's tags among them: plain values of StackedLora.
        data: the data folder.
    """

    values: Mapping[str, Any]
    stack: Sequence[Mapping[str, Any]]
    data: DataFolder
