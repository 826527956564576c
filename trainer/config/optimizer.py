"""Optimizers and learning-rate schedules.

Adding an optimizer: its class here with the knobs that it has, and an entry in `AnyOptimizer`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings


class AdamWConfig(Settings):
    """AdamW (arXiv 1711.05101), torch's own."""

    implementation: ClassVar[str] = "trainer.optimizers.adamw:build"

    name: Literal["adamw"] = "adamw"
    """How the weights are updated."""
    unet_learning_rate: Annotated[float, BASIC, Field(ge=0, le=1)] = 1e-4
    """Learning rate of the UNet's LoRA. Too high burns the pictures in, too low changes nothing; 1e-4 is the usual start for SD 1.5. 0 leaves it as it is."""
    text_encoder_learning_rate: Annotated[float, BASIC, Field(ge=0, le=1)] = 2e-5
    """Learning rate of the text encoder's LoRA; a fifth to a tenth of the UNet's is usual. Without effect while the text encoder's rank is 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Pulls the LoRA's weights towards zero a little in each step."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the gradient's mean."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square."""
    epsilon: Annotated[float, Field(gt=0, le=0.1)] = 1e-8
    """Added to the denominator against division by zero."""

    def learning_rate(self, part: str) -> float:
        """The full rate of a part of the model; all text encoders have the same."""
        return self.unet_learning_rate if part == "unet" else self.text_encoder_learning_rate


# A second optimizer makes this `Annotated[AdamWConfig | OtherConfig, Field(discriminator="name")]`.
AnyOptimizer = AdamWConfig


class ScheduleConfig(Settings):
    """How the learning rates change over the run."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    """After warm-up: stay constant, fall along a cosine to zero, or fall in a line to zero."""
    warmup_share: Annotated[float, Field(ge=0, le=0.9)] = 0.05
    """Share of the steps in which the rate rises from zero to its full height."""
