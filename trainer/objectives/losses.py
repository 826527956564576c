"""The distance between a prediction and its target: pure functions of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.config.objective import HuberSchedule, ObjectiveConfig


def squared_error(prediction: Tensor, target: Tensor, area: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, float32 `(batch,)`; `area` weighs the numbers that it is the mean of."""
    return _mean((prediction.float() - target.float()).square(), area)


def _mean(values: Tensor, area: Tensor | None) -> Tensor:
    return (values if area is None else values * area).flatten(1).mean(dim=1)


def error(
    objective: ObjectiveConfig,
    prediction: Tensor,
    target: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    area: Tensor | None = None,
) -> Tensor:
    """The error of each sample as the settings ask, float32 `(batch,)`.

    Args:
        objective: names the loss and its threshold.
        prediction, target: `(batch, ...)`.
        timesteps: `(batch,)`, int64.
        alphas_cumprod: products of 1 - beta, `(num_timesteps,)`, float32.
        area: weights of the latents, `(batch, 1, h, w)`; None where all count alike.
    """
    if objective.loss == "l2":
        return squared_error(prediction, target, area)
    delta = huber_threshold(objective.huber_schedule, objective.huber_delta, timesteps, alphas_cumprod)
    return pseudo_huber(prediction, target, delta, area, is_scaled=objective.loss == "huber")


def huber_threshold(schedule: HuberSchedule, delta: float, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The error at which the loss turns from square to proportional, `(batch,)`, float32.

    Khrapov et al. 2024, "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss",
    https://arxiv.org/abs/2403.16728, section 4; `snr` as in kohya's sd-scripts.

    Args:
        schedule: `constant`: `delta`; `exponential`: `delta^(t / num_timesteps)`; `snr`: `(1 - delta) / (1 + sigma)^2 + delta`.
        delta: > 0; the paper's is 0.1 for the schedules at pure noise.
        timesteps: `(batch,)`, int64.
        alphas_cumprod: products of 1 - beta, `(num_timesteps,)`, float32; 0 at zero terminal SNR.
    """
    if schedule == "exponential":
        return torch.exp(math.log(delta) / len(alphas_cumprod) * timesteps.float())
    if schedule == "snr":
        alphas = alphas_cumprod[timesteps]
        sigmas = ((1 - alphas) / alphas).sqrt()
        return (1 - delta) / (1 + sigmas) ** 2 + delta
    return torch.full(timesteps.shape, delta, dtype=torch.float32, device=timesteps.device)


def pseudo_huber(
    prediction: Tensor, target: Tensor, delta: Tensor, area: Tensor | None = None, *, is_scaled: bool
) -> Tensor:
    """`2 (sqrt(error^2 + delta^2) - delta)`, the mean of each sample, float32 `(batch,)`.

    Args:
        prediction, target: `(batch, ...)`.
        delta: `(batch,)`, > 0.
        area: weights of the latents, `(batch, 1, h, w)`; None where all count alike.
        is_scaled: multiply with `delta`, which makes it the square for errors far below `delta` (Charbonnier et al.
            1994; kohya's `huber`). Otherwise it is `2 |error|` far above it (kohya's `smooth_l1`).
    """
    wide = delta.reshape(-1, *(1,) * (prediction.ndim - 1))
    square = (prediction.float() - target.float()).square()
    # sqrt(e^2 + d^2) - d without the difference of two nearly equal numbers.
    values = 2 * square / ((square + wide.square()).sqrt() + wide)
    return _mean((wide * values) if is_scaled else values, area)
