"""Settings that several LoRA tools share: weighted files, and how far a result is cut."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Hint, Level, Settings

Fault = tuple[str, str]
"""The dotted path of a setting, and what is wrong with it."""


class WeightedLora(Settings):
    """A LoRA and how strongly it counts."""

    file: Annotated[str, Field(min_length=1)]
    """A LoRA of the library by its name, or the path of a `.safetensors` file."""
    unet_weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Strength of its changes of the UNet; a negative one turns them round."""
    text_encoder_weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Strength of its changes of the text encoders."""


def weighted_lora(text: str) -> WeightedLora:
    """`FILE`, `FILE:0.8` or `FILE:0.8:0.5` (UNet, text encoders); colons inside the file name (a Windows drive) stay.

    Raises: ValueError: the file name is empty, or a weight is beyond ±10.
    """
    parts, weights = text.split(":"), list[float]()
    while len(parts) > 1 and len(weights) < 2 and _NUMBER.fullmatch(parts[-1].strip()):
        weights.insert(0, float(parts.pop()))
    file = ":".join(parts).strip()
    if not file:
        raise ValueError(f"'{text}' names no file: write FILE, FILE:0.8 or FILE:0.8:0.5")
    if any(abs(weight) > 10 for weight in weights):
        raise ValueError(f"the weights in '{text}' are from -10 to 10")
    unet = weights[0] if weights else 1.0
    return WeightedLora(file=file, unet_weight=unet, text_encoder_weight=weights[1] if len(weights) == 2 else unet)


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


class Cut(Settings):
    """How many ranks each layer keeps. What is cut is what matters least, and how much was lost is reported."""

    rule: Annotated[
        Literal["exact", "rank", "sv_fro", "sv_cumulative", "sv_ratio", "size_mb"], Hint(Level.BASIC, label="Rank by")
    ] = "exact"
    """`exact` cuts nothing. `rank`: that many. `sv_fro`: as few as hold this share of the Frobenius norm. `sv_cumulative`: as few as hold this share of the sum of singular values. `sv_ratio`: singular values of at least the largest divided by this. `size_mb`: what loses least in a file of this size."""
    value: Annotated[float, Hint(Level.BASIC, label="Value of the rule"), Field(ge=0, le=1_000_000)] = 32
    """A rank such as 32, a share such as 0.95, a ratio such as 10, or a size in MB, as the rule says. `exact` does not use it."""
    max_rank: Annotated[int, Field(ge=0, le=16_384)] = 0
    """The most that a layer gets under any rule; 0 sets no limit."""

    def faults(self) -> list[Fault]:
        """What keeps the rule from being used."""
        allowed = {
            "rank": (self.value >= 1 and float(self.value).is_integer(), "a rank is a whole number from 1 on"),
            "sv_fro": (0 < self.value <= 1, "this rule takes a share above 0 and up to 1, such as 0.95"),
            "sv_cumulative": (0 < self.value <= 1, "this rule takes a share above 0 and up to 1, such as 0.9"),
            "sv_ratio": (self.value > 1, "this rule takes a ratio above 1, such as 10"),
            "size_mb": (self.value > 0, "this rule takes a size above 0 MB"),
        }
        is_right, needed = allowed.get(self.rule, (True, ""))
        found = [] if is_right else [("cut.value", f"{needed} (got {self.value:g})")]
        if self.rule == "exact" and self.max_rank:
            found.append(("cut.max_rank", "goes with a rule that cuts: choose one, or set it to 0"))
        return found


class LossyCut(Cut):
    """How many ranks each layer keeps of what is not of low rank. What is cut is what matters least, and how much was lost is reported."""

    rule: Annotated[
        Literal["rank", "sv_fro", "sv_cumulative", "sv_ratio", "size_mb"], Hint(Level.BASIC, label="Rank by")
    ] = "rank"
    """`rank`: that many. `sv_fro`: as few as hold this share of the Frobenius norm. `sv_cumulative`: as few as hold this share of the sum of singular values. `sv_ratio`: singular values of at least the largest divided by this. `size_mb`: what loses least in a file of this size."""
