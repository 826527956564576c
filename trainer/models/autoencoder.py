"""Pictures to latents and back, with a VAE whose number format is changed where it overflows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.errors import ModelFileError

if TYPE_CHECKING:
    from trainer.models.components import Components

log = logging.getLogger(__name__)


def encode_images(components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of `pixels` (`(batch, 3, height, width)` in [-1, 1]).

    Raises: ModelFileError: the VAE gives NaN even in fp32.
    """
    try:
        return _encode(components, pixels)
    except _NotFiniteError:
        _use_fp32(components)
        return _encode(components, pixels)


def decode_latents(components: Components, latents: Tensor) -> Tensor:
    """Pixels in [0, 1], float32 `(batch, 3, height, width)`. Raises ModelFileError as `encode_images` does."""
    try:
        return _decode(components, latents)
    except _NotFiniteError:
        _use_fp32(components)
        return _decode(components, latents)


class _NotFiniteError(ModelFileError):
    pass


def _encode(components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
    vae = components.vae
    with torch.no_grad():
        distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    factor = vae.config.scaling_factor
    mean, std = distribution.mean.float() * factor, torch.exp(0.5 * distribution.logvar.float()) * factor
    _require_finite(components, mean, std)
    return mean, std


def _decode(components: Components, latents: Tensor) -> Tensor:
    vae = components.vae
    with torch.no_grad():
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
    _require_finite(components, pixels)
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def _require_finite(components: Components, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise _NotFiniteError(
            f"The VAE of '{components.name}' gives NaN instead of a picture.",
            where="model.vae",
            fix="Choose another VAE in the settings (model.vae), or another base model.",
        )


def _use_fp32(components: Components) -> None:
    if components.vae.dtype == torch.float32:
        raise _NotFiniteError(
            f"The VAE of '{components.name}' gives NaN even in fp32: its weights are damaged.",
            where="model.vae",
            fix="Choose another VAE in the settings (model.vae), or another base model.",
        )
    log.warning("The VAE gives NaN in %s; it goes on in fp32", components.vae.dtype)
    components.vae.float()
