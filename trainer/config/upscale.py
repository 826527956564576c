"""What is asked of an upscaling model, for pictures that there are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings


class UpscaleConfig(Settings):
    """Pictures to be enlarged by an upscaling model alone, without a base model."""

    pictures: Annotated[list[str], BASIC, Field(min_length=1, max_length=1000)]
    """Picture files."""
    upscaler: Annotated[str, BASIC, Field(min_length=1, max_length=2000)]
    """An upscaling model, by the name of its file in the data folder's `upscalers`, or its path."""
    scale: Annotated[float, BASIC, Field(ge=0, le=16)] = 0.0
    """How many times larger; 0 takes the model's own."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to compute."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """How pictures are saved."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of JPEG and WebP: higher is closer to the picture, and larger."""
