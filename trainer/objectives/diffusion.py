"""The forward process of diffusion and what is predicted: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise (Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 4).

    Args:
        latents: x_0, shape `(batch, ...)`.
        noise: standard normal, of the same shape.
        timesteps: `(batch,)`, int64.
        alphas_cumprod: products of 1 - beta, `(num_timesteps,)`, float32.
    """
    alpha = _per_sample(alphas_cumprod[timesteps], latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def target(
    prediction_type: PredictionType, latents: Tensor, noise: Tensor, timesteps: Tensor, alphas: Tensor
) -> Tensor:
    """What the model should predict: the noise, or v = sqrt(a_t) noise - sqrt(1 - a_t) x_0.

    v is from Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, appendix D. `alphas` is `alphas_cumprod`.
    Raises: ValueError: `prediction_type` is unknown.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha = _per_sample(alphas[timesteps], latents)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    raise ValueError(f"unknown prediction type: {prediction_type!r}")


def offset_noise(noise: Tensor, offsets: Tensor, strength: float) -> Tensor:
    """Noise with a constant added to each channel, so that overall brightness is learned.

    Guttenberg 2023, "Diffusion with Offset Noise". `noise` is `(batch, channels, h, w)`, `offsets` standard normal
    `(batch, channels, 1, 1)`, `strength` >= 0.
    """
    return noise + strength * offsets


def sample_latents(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """A draw of the autoencoder's posterior; all three of one shape."""
    return mean + std * noise


def evenly_spread_timesteps(low: int, high: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `[low, high)`, ascending; fewer where the range holds fewer."""
    count = min(count, high - low)
    return [int(low + (index + 0.5) * (high - low) / count) for index in range(count)]


def draw_timesteps(batch: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Uniform timesteps in `[low, high)`, shape `(batch,)`, int64."""
    return torch.randint(low, high, (batch,), generator=generator)
