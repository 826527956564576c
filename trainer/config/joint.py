"""A second low-rank adapter that learns at the same time as the first, with numbers and layers of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.base import Settings
from trainer.config.blocks import parse_rule
from trainer.config.targets import UnetTargets

GROUP = "joint"
"""What the second adapter's groups of weights end with."""
FIRST, SECOND = "a", "b"
"""What the files of the two end with."""


class JointSettings(Settings):
    """A second LoRA that learns at the same time, beside the first: on other blocks, or on the same layers with another rank. Both are exported, and their exact sum."""

    rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of the second LoRA on the UNet. With this and its text encoder's at 0 there is none."""
    alpha: Annotated[float, Field(gt=0, le=1024)] = 16.0
    """It is scaled by alpha / rank (rsLoRA: alpha / √rank)."""
    method: Literal["lora", "rslora", "loraplus"] = "lora"
    """How it is scaled and learns; LoRA+ with the ratio of the first's settings."""
    rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What it multiplies all learning rates with. Below 1 it learns slower than the first: for example a high rank for detail at 0.3 beside a low one for the whole."""
    targets: UnetTargets = "attention"
    """Which layers of the UNet it changes, as `adapter.unet.targets`: those of the first, or others such as `style-blocks` beside `content-blocks`."""
    pattern: Annotated[str, Field(max_length=1000)] = ""
    """Which layers it changes with the targets `pattern`."""
    blocks: Annotated[list[str], Field(max_length=1000)] = []
    """Its own numbers for single blocks, one a line, as in `adapter.blocks`; with `*: rank=0` first, only the blocks named after it are trained."""
    text_encoder_rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of the second LoRA on the text encoders. 0: it leaves them to the first."""
    text_encoder_alpha: Annotated[float, Field(gt=0, le=1024)] = 8.0
    """It is scaled by alpha / rank there."""

    @field_validator("blocks")
    @classmethod
    def _readable_blocks(cls, value: list[str]) -> list[str]:
        for line in value:
            parse_rule(line)
        return value

    @property
    def is_on(self) -> bool:
        """Whether there is a second adapter."""
        return bool(self.rank or self.text_encoder_rank)


_SECOND = {
    "adapter.unet.rank": "rank",
    "adapter.unet.alpha": "alpha",
    "adapter.unet.targets": "targets",
    "adapter.unet.pattern": "pattern",
    "adapter.blocks": "blocks",
    "adapter.text_encoder.rank": "text_encoder_rank",
    "adapter.text_encoder.alpha": "text_encoder_alpha",
}


def second_path(path: str) -> str:
    """Where the second adapter has what a setting is to the first; the setting itself where both share it."""
    return f"adapter.{GROUP}.{_SECOND[path]}" if path in _SECOND else path


def unused_faults(settings: JointSettings) -> list[tuple[str, str]]:
    """Settings of a second adapter that does not exist, as (field path, message with the remedy)."""
    if settings.is_on:
        return []
    return [
        (f"adapter.{GROUP}.{name}", "there is no second LoRA: give it a rank in adapter.joint.rank, or set this back")
        for name, info in JointSettings.model_fields.items()
        if getattr(settings, name) != info.default
    ]
