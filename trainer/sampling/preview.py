"""A rough view of unfinished latents, so cheap that it costs no noticeable time."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.models.components import Components
from trainer.sampling.sampler import to_image

_SHOWN_SIDE = 256
_FITTED_SIDE = 16
_FITTED_PICTURES = 4


class LatentPreview:
    """Colours as a linear function of a latent's channels, fitted to the model's own VAE.

    The VAE encodes a few small pictures of smooth colours once; after that no VAE is needed. It works for every VAE,
    unlike the published table of factors, which is for SD 1.x alone.
    """

    def __init__(self, components: Components) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        coarse = torch.rand((_FITTED_PICTURES, 3, 4, 4), generator=generator)
        side = _FITTED_SIDE * components.vae_scale_factor
        pixels = functional.interpolate(coarse, size=(side, side), mode="bilinear")
        with components.resident("vae"):
            latents, _ = components.family.encode_images(components, pixels * 2 - 1)
        colours = functional.interpolate(pixels, size=latents.shape[-2:], mode="area")
        self._factors = torch.linalg.lstsq(_with_constant(latents.cpu()), _flat(colours)).solution

    def picture(self, latents: Tensor) -> Image.Image:
        """`(channels, height, width)` latents as a picture of at most 256 pixels a side."""
        _, height, width = latents.shape
        colours = _with_constant(latents[None].float().cpu()) @ self._factors
        image = to_image(colours.T.reshape(3, height, width))
        scale = _SHOWN_SIDE / max(height, width)
        return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


def _flat(values: Tensor) -> Tensor:
    """`(batch, channels, height, width)` as `(pixels, channels)`."""
    return values.permute(0, 2, 3, 1).flatten(0, 2).float()


def _with_constant(latents: Tensor) -> Tensor:
    flat = _flat(latents)
    return torch.cat([flat, torch.ones(len(flat), 1)], 1)
