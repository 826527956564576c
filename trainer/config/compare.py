"""What is asked of a before/after comparison of a LoRA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC
from trainer.config.generate import MAX_SEED, SamplerName
from trainer.config.model import BaseChoice


class CompareConfig(BaseChoice):
    """The same prompts and seeds without and with a LoRA, beside the pictures it learned from."""

    lora: Annotated[str, BASIC, Field(min_length=1)]
    """A LoRA of the library by its name, or the path of a `.safetensors` file."""
    dataset: Annotated[str, BASIC] = ""
    """The data set that it learned from: shown in the grid, and what the style distance is measured to. Empty: neither."""
    prompts: Annotated[list[str], BASIC, Field(max_length=64)] = []
    """Prompts, one a line. Empty: the base model's own examples."""
    trigger_word: str = ""
    """Put in front of every prompt, with and without the LoRA."""
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] = 16
    """Denoising steps."""
    sampler: SamplerName = "DPM++ 2M Karras"
    """How the noise is taken away."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 4.0
    """How strictly a picture follows its prompt."""
    seed: Annotated[int, BASIC, Field(ge=0, le=MAX_SEED)] = 7
    """Seed of the first picture; the next ones count up."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to compute."""
