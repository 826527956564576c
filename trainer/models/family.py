"""What the rest of the engine asks of a model family, and the families there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from trainer.config.adapter import AdapterConfig
from trainer.models.conditioning import Conditioning
from trainer.models.text import AS_WRITTEN, PromptOptions
from trainer.objects import load_object

if TYPE_CHECKING:
    from trainer.models.components import Components


class Family(Protocol):
    """A kind of model: how its parts are called and what they are named in files."""

    name: str
    zeroes_empty_negative: bool
    """Whether an empty negative prompt is given as zeros instead of the empty prompt's states."""

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], options: PromptOptions = AS_WRITTEN
    ) -> Conditioning:
        """What the UNet is told of the prompts; differentiable through the text encoders."""
        ...

    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, float32 `(batch, channels, h, w)`, scaled for the UNet."""
        ...

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], float32 `(batch, 3, height, width)`, of scaled latents."""
        ...

    def predict(
        self, components: Components, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The UNet's prediction, float32, of the shape of `noisy_latents`; `conditioning` carries its frames.

        An inpainting model is given the mask and the latents of the picture without what is masked behind the noisy latents,
        as further channels.
        """
        ...

    def target_modules(self, components: Components, config: AdapterConfig) -> dict[str, list[str]]:
        """Paths of the layers that `config` trains, by part ("unet", "text_encoder", "text_encoder_2")."""
        ...

    def pixel_multiple(self, components: Components) -> int:
        """Sides of pictures must be multiples of this."""
        ...


FAMILIES = {
    "sd1": "trainer.models.sd1:StableDiffusion1",
    "sd2": "trainer.models.sd2:StableDiffusion2",
    "sdxl": "trainer.models.sdxl:StableDiffusionXL",
}


def load_family(name: str) -> Family:
    """The family of that name. Raises KeyError for one that is not in `FAMILIES`."""
    return load_object(FAMILIES[name])()


def no_grad_encode(
    family: Family, components: Components, prompts: Sequence[str], options: PromptOptions
) -> Conditioning:
    """`encode_prompts` without the graph, for prompts that nothing is learned from."""
    with torch.no_grad():
        return family.encode_prompts(components, prompts, options)
