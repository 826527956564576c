"""Adapter methods: a class each, which names its implementation.

Adding a method: write `trainer/adapters/<method>.py`, its class here, and an entry in `AnyAdapter`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings

UnetTargets = Literal["attention", "attention+mlp", "all-linear", "all+conv"]
TextTargets = Literal["attention", "attention+mlp"]


class UnetLora(Settings):
    """LoRA on the UNet: what pictures look like."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 16
    """Rank of the UNet's LoRA. Higher learns finer detail, makes a larger file and overfits sooner; 4 to 32 is usual. 0: the UNet is not trained."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 16.0
    """The LoRA is scaled by alpha / rank. Equal to the rank, or half of it, is usual; much higher than the rank often ends in NaN."""
    targets: UnetTargets = "attention"
    """Which layers learn: `attention` (small file), `attention+mlp`, `all-linear`, or `all+conv` (LoCon: also convolutions; strongest for styles)."""


class TextEncoderLora(Settings):
    """LoRA on the text encoder: what words mean."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 0
    """Rank of the text encoder's LoRA. 0: it is not trained, which is usual for styles; 4 to 16 for characters."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 8.0
    """The LoRA is scaled by alpha / rank."""
    targets: TextTargets = "attention+mlp"
    """Which layers of the text encoder learn."""


class LoraConfig(Settings):
    """LoRA (arXiv 2106.09685): a low-rank update beside each chosen layer; read by every other tool."""

    implementation: ClassVar[str] = "trainer.adapters.lora:LoraMethod"

    method: Literal["lora"] = "lora"
    """The adapter method."""
    unet: UnetLora = UnetLora()
    """LoRA on the UNet."""
    text_encoder: TextEncoderLora = TextEncoderLora()
    """LoRA on the text encoder."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the LoRA's inputs dropped at random while training. A little (0.1) against overfitting of tiny sets."""


# A second method makes this `Annotated[LoraConfig | OtherConfig, Field(discriminator="method")]`.
AnyAdapter = LoraConfig
