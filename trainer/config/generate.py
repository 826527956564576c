"""What is asked of a generation: prompt, size, sampler, and the stack of LoRAs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.blocks import parse_blocks
from trainer.config.base import BASIC, Settings
from trainer.config.model import BaseChoice

MAX_SEED = 2**63 - 1
SamplerName = Literal[
    "DDIM", "Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DPM++ 2M SDE Karras", "UniPC", "Heun", "LMS", "PNDM"
]


class StackedLora(Settings):
    """One LoRA of a stack."""

    file: Annotated[str, Field(min_length=1)]
    """A LoRA of the library by its name, or the path of a `.safetensors` file."""
    unet_weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """How strongly it changes the UNet; 0 not at all, 1 as trained; may be negative."""
    text_encoder_weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """How strongly it changes the text encoder."""
    blocks: Annotated[str, Field(max_length=1000)] = ""
    """Weights of the UNet's blocks: a preset such as MIDD, a list of 12, 17, 20 or 26 numbers, or blocks by name
    (down1:0.5,mid:0). Empty: all alike."""
    start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """From which share of the sampling steps on it works."""
    end: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Up to which share of the sampling steps it works."""
    is_on: bool = True
    """Whether it is used."""

    @field_validator("blocks")
    @classmethod
    def _blocks_can_be_read(cls, text: str) -> str:
        parse_blocks(text)
        return text

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> StackedLora:
        if self.start >= self.end:
            raise ValueError(f"its steps end at {self.end:g}, before they start at {self.start:g}")
        return self


class GenerateConfig(BaseChoice):
    """Pictures to be made."""

    prompt: Annotated[str, BASIC, Field(max_length=10_000)] = ""
    """What the picture shows."""
    negative_prompt: Annotated[str, BASIC, Field(max_length=10_000)] = ""
    """What it should not show."""
    width: Annotated[int, BASIC, Field(ge=0, le=4096, multiple_of=8)] = 0
    """Width in pixels, a multiple of 8; 0 takes the base model's own."""
    height: Annotated[int, BASIC, Field(ge=0, le=4096, multiple_of=8)] = 0
    """Height in pixels, a multiple of 8; 0 takes the base model's own."""
    num_inference_steps: Annotated[int, BASIC, Field(ge=1, le=500)] = 20
    """Denoising steps: more is finer up to about 30, and takes longer in proportion."""
    sampler: Annotated[SamplerName, BASIC] = "DPM++ 2M Karras"
    """How the noise is taken away."""
    guidance_scale: Annotated[float, BASIC, Field(ge=0, le=30)] = 7.0
    """How strictly the picture follows the prompt; too high burns the colours."""
    seed: Annotated[int, BASIC, Field(ge=-1, le=MAX_SEED)] = -1
    """The same seed makes the same picture; -1 takes a new one each time."""
    count: Annotated[int, BASIC, Field(ge=1, le=64)] = 1
    """How many pictures, with seeds counted up from the first."""
    loras: list[StackedLora] = []
    """LoRAs on top of the base model, each with its weights."""
    clip_skip: Annotated[int, Field(ge=1, le=4)] = 1
    """Which of the text encoder's last layers is read; use what the base model was made with."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the model."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to compute."""
    output_format: Literal["png", "jpeg", "webp"] = "png"
    """How pictures are saved: `png` keeps every pixel; `jpeg` and `webp` are a tenth of its size. The recipe is in each of them."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of JPEG and WebP: higher is closer to the picture, and larger."""
