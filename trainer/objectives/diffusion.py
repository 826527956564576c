"""The forward process of diffusion and what is predicted: pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from trainer.config.objective import ObjectiveConfig
from trainer.timesteps import timestep_at

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


def pyramid_noise(noise: Tensor, levels: int, discount: float, generator: torch.Generator) -> Tensor:
    """Noise with coarser noise added, so that large areas and overall brightness are learned; each sample of unit deviation.

    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training"; the levels are kohya's `multires_noise`.

    Args:
        noise: standard normal, `(batch, channels, h, w)`, float32.
        levels: how many, >= 0; fewer where a side comes down to 1. The first is of full size.
        discount: strength of each level against the one before, in (0, 1].
        generator: of the coarser noise and of how much coarser each level is (2 to 4 times).
    """
    if levels == 0:
        return noise
    height, width = noise.shape[-2:]
    total = noise
    for level in range(levels):
        # Level 0 is of full size, as in the source; the numbers between 2 and 4 keep the levels from lining up.
        factor = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        size = (max(1, int(height / factor)), max(1, int(width / factor)))
        coarse = torch.randn((*noise.shape[:2], *size), generator=generator)
        total = total + discount**level * interpolate(coarse, noise.shape[-2:], mode="bilinear")
        if 1 in size:
            break
    return total / total.flatten(1).std(dim=1).reshape(-1, 1, 1, 1)


def perturbed_noise(noise: Tensor, extra: Tensor, strength: float) -> Tensor:
    """The noise that goes into the picture where the model is still asked for `noise`.

    Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models", https://arxiv.org/abs/2301.11706,
    algorithm 1. Both tensors are standard normal and of one shape; `strength` >= 0, the paper uses 0.1.
    """
    return noise + strength * extra


def sample_latents(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """A draw of the autoencoder's posterior; all three of one shape."""
    return mean + std * noise


def evenly_spread_timesteps(low: int, high: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `[low, high)`, ascending; fewer where the range holds fewer."""
    count = min(count, high - low)
    return [int(low + (index + 0.5) * (high - low) / count) for index in range(count)]


def draw_timesteps(batch: int, objective: ObjectiveConfig, generator: torch.Generator) -> Tensor:
    """Timesteps of the trained range in the chosen distribution, shape `(batch,)`, int64."""
    if objective.timestep_distribution == "uniform":
        return torch.randint(objective.min_timestep, objective.max_timestep, (batch,), generator=generator)
    shares = torch.rand(batch, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12).tolist()
    return torch.tensor([timestep_at(objective, share) for share in shares])
