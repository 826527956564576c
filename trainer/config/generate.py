"""What is asked of a generation: prompt, size, sampler, and the stack of LoRAs."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainer.blocks import parse_blocks
from trainer.config.base import BASIC, Hint, Settings
from trainer.config.model import BaseChoice

MAX_SEED = 2**63 - 1
SamplerName = Literal[
    "DDIM", "Euler", "Euler a", "Euler Karras", "Euler Exponential", "Euler Beta", "DPM++ 2M", "DPM++ 2M Karras",
    "DPM++ 2M Exponential", "DPM++ 2M Beta", "DPM++ 2M SDE", "DPM++ 2M SDE Karras", "DPM++ 2M SDE Exponential",
    "DPM++ 3M SDE", "DPM++ 3M SDE Karras", "DPM++ 3M SDE Exponential", "DPM++ SDE", "DPM++ SDE Karras", "DPM++ 2S",
    "DPM2", "DPM2 Karras", "DPM2 a", "DPM2 a Karras", "UniPC", "UniPC Karras", "DEIS", "Heun", "Heun Karras", "LMS",
    "LMS Karras", "PNDM", "LCM", "TCD",
]  # fmt: skip
UpscalerName = Literal["latent", "latent bicubic", "latent nearest", "lanczos"]
"""The ways to enlarge a picture that need no file."""


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
    init_image: Annotated[str, Field(max_length=2000)] = ""
    """A picture to start from, instead of pure noise. Its size is fitted to width and height; where those are 0, they are its own."""
    strength: Annotated[float, Field(ge=0, le=1)] = 0.6
    """How much of the picture is made anew: the share of the steps that are done. 0 leaves it, 1 forgets it."""
    resize: Literal["crop", "stretch"] = "crop"
    """How the picture is fitted to another shape."""
    mask: Annotated[str, Field(max_length=2000)] = ""
    """A picture that is white where the start picture is painted anew; what is black stays, to the last pixel."""
    mask_blur: Annotated[int, Hint(unit="pixels"), Field(ge=0, le=64)] = 4
    """How soft the mask's edge is."""
    masked_area: Literal["whole picture", "only masked"] = "whole picture"
    """What the model sees: the picture, or the painted part and what is around it, enlarged to width and height. The second is
    for small things in large pictures, such as faces."""
    mask_padding: Annotated[int, Hint(unit="pixels"), Field(ge=0, le=512)] = 32
    """How much of what is around the painted part is seen with it, where only that is."""
    hires_scale: Annotated[float, Field(ge=1, le=4)] = 1.0
    """How many times larger the finished picture is: it is made, enlarged, and partly made anew at that size, so that large
    pictures do not repeat themselves. 1 leaves that out."""
    hires_upscaler: Annotated[str, Field(min_length=1, max_length=2000)] = "latent"
    """How it is enlarged: what the model works on (latent, latent bicubic, latent nearest: may add details, want a strength of 0.5
    or more), or the picture itself: by lanczos, or by an upscaling model (ESRGAN, SwinIR, …), named as its file in the data
    folder's `upscalers`, or by its path."""
    hires_strength: Annotated[float, Field(ge=0, le=1)] = 0.55
    """How much of the enlarged picture is made anew."""
    hires_steps: Annotated[int, Field(ge=0, le=500)] = 0
    """Steps of the enlarged picture, of which its strength's share is done; 0 takes those of the first."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Takes back the overexposure of high guidance (arXiv 2305.08891): 0.7 for v-prediction models with zero terminal SNR."""
    eta: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """How much noise DDIM, TCD and DPM++ SDE put in anew at each step; -1 takes the sampler's own."""
    seamless: bool = False
    """Pictures whose edges fit each other, for tiles."""
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

    @field_validator("hires_upscaler")
    @classmethod
    def _built_in_upscalers_have_one_name(cls, name: str) -> str:
        return name.casefold() if name.casefold() in get_args(UpscalerName) else name

    @model_validator(mode="after")
    def _pictures_go_together(self) -> GenerateConfig:
        faults = []
        if self.mask and not self.init_image:
            faults.append("mask: a mask needs the picture that it is for: set init_image")
        if self.mask and self.hires_scale > 1:
            faults.append("hires_scale: a masked picture keeps its size: set it to 1, or leave out the mask")
        if self.masked_area == "only masked" and not self.mask:
            faults.append("masked_area: there is no mask: set one, or choose 'whole picture'")
        if faults:
            raise ValueError("\n".join(faults))
        return self
