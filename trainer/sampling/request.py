"""What is asked of the denoising loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from trainer.config.generate import SamplerName


class WeightSchedule(Protocol):
    """Weights that change while a picture is made (`trainer.sampling.schedule`)."""

    def begin(self, num_steps: int, positions: int, batch: int) -> None:
        """A run of so many steps begins, with so many latent pixels and pictures at once."""
        ...

    def at(self, step: int) -> bool:
        """Make the weights those of a step, from 0. Returns whether the prompts must be encoded anew."""
        ...

    def end(self) -> None:
        """The run is over."""
        ...


OnStep = Callable[[int, int, Tensor], None]
"""Called after each denoising step with its number (from 1), the number of all steps, and the model's present idea of
the finished latents, `(batch, channels, height, width)` float32. May raise Cancelled."""


@dataclass(frozen=True, eq=False)
class Start:
    """Finished latents that a picture begins from, instead of pure noise.

    Attributes:
        latents: `(channels, height, width)`, float32, scaled for the UNet.
        strength: the share of the steps that are done, 0 to 1. 0 leaves the latents as they are; 1 begins at pure noise, so
            that only what is kept counts.
        repainted: `(1, height, width)` in [0, 1], float32: 1 where the picture is made anew, 0 where `latents` stay. None: it
            is made anew everywhere.
        shown: what an inpainting model sees beside the noisy latents, `(1 + channels, height, width)` float32: the mask, 1 where
            the picture is made anew, and the latents of the picture that is grey there. None with other models, and where
            all is made anew.
    """

    latents: Tensor
    strength: float
    repainted: Tensor | None = None
    shown: Tensor | None = None


@dataclass(frozen=True)
class SampleRequest:
    """One picture to be made. Sizes are in pixels; `guidance_scale` of 1 or less means no guidance; without `has_weights`
    brackets in the prompts are plain text. `eta` is the share of noise that the sampler puts in anew; None its own."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    sampler: SamplerName
    guidance_scale: float
    seed: int
    clip_skip: int = 1
    has_weights: bool = True
    guidance_rescale: float = 0.0
    eta: float | None = None
    start: Start | None = None

    @property
    def is_guided(self) -> bool:
        """Whether the model is also asked without the prompt (arXiv 2207.12598)."""
        return self.guidance_scale > 1.0

    def batch_key(self) -> tuple[Any, ...]:
        """What pictures have in common that can be denoised together."""
        shape = (self.width, self.height, self.num_inference_steps, self.sampler, self.eta)
        start = self.start and (self.start.strength, self.start.repainted is None)
        return (*shape, self.is_guided, self.clip_skip, self.has_weights, start)
