"""What a check is asked: for which training the pictures are wanted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.config.model import BaseChoice

CaptionTokens = Literal[75, 150, 225]
BASE = BaseChoice().base


class CheckSettings(BaseModel):
    """For which training the pictures are wanted. `resolution` in px: side of the square whose area they are trained at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: Annotated[int, Field(ge=32, le=2048)] = 512
    base: Annotated[str, Field(min_length=1)] = BASE
    max_caption_tokens: CaptionTokens = 225
