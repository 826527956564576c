"""Loss weights by timestep: pure functions of tensors.

Weights are derived for the error of a predicted noise. At a given noisy picture the error of a predicted v is that of
the noise times (SNR + 1) / SNR (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, appendix D), so that a weight on
v that asks for the same is SNR / (SNR + 1) times the weight on the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.config.objective import ObjectiveConfig
from trainer.objectives.diffusion import PredictionType

_MIN_SNR = 1e-3
"""Where the noise is predicted, the debiased weight has no limit at zero terminal SNR; it stops here (a weight of 32).
SD 1.5's own last SNR is 0.0047."""


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = a_t / (1 - a_t), shape `(batch,)`, of `alphas_cumprod` `(num_timesteps,)` and `timesteps` `(batch,)`."""
    alpha = alphas_cumprod[timesteps]
    return alpha / (1 - alpha)


def loss_weights(objective: ObjectiveConfig, snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """The weight of each sample's loss as the settings ask, `(batch,)`, of `snr` `(batch,)`. Raises ValueError."""
    if objective.weighting == "min_snr" and objective.min_snr_gamma > 0:
        return min_snr_weights(snr, objective.min_snr_gamma, prediction_type)
    if objective.weighting == "debiased":
        return debiased_weights(snr, prediction_type)
    if objective.weighting == "p2":
        return p2_weights(snr, objective.p2_gamma, objective.p2_k, prediction_type)
    return torch.ones_like(snr)


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Loss weights that cap the pull of low-noise timesteps.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", https://arxiv.org/abs/2303.09556,
    section 3.4.

    Args:
        snr: signal-to-noise ratio of each sample's timestep, shape `(batch,)`, float32, >= 0 (0 at zero terminal SNR).
        gamma: cap in SNR units, > 0; the paper uses 5.
        prediction_type: what the model predicts.

    Returns: shape `(batch,)`: `min(snr, gamma) / snr` for epsilon (its limit 1 at SNR 0), `/ (snr + 1)` for v_prediction.
    Raises: ValueError: `gamma` is not positive, or `prediction_type` is unknown.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0, not {gamma}")
    if prediction_type == "epsilon":
        # min(snr, gamma) / snr without the division of 0 by 0.
        return gamma / snr.clamp(min=gamma)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    raise ValueError(f"unknown prediction type: {prediction_type!r}")


def debiased_weights(snr: Tensor, prediction_type: PredictionType) -> Tensor:
    """Weights against the bias of the estimated clean picture at noisy timesteps.

    Yu et al. 2023, "Debias the Training of Diffusion Models", https://arxiv.org/abs/2310.08442, section 4.

    Returns: shape `(batch,)`: `1 / sqrt(snr)` for epsilon, `sqrt(snr) / (snr + 1)` for v_prediction.
    Raises: ValueError: `prediction_type` is unknown.
    """
    if prediction_type == "epsilon":
        return snr.clamp(min=_MIN_SNR).rsqrt()
    if prediction_type == "v_prediction":
        return snr.sqrt() / (snr + 1)
    raise ValueError(f"unknown prediction type: {prediction_type!r}")


def p2_weights(snr: Tensor, gamma: float, k: float, prediction_type: PredictionType) -> Tensor:
    """Perception-prioritised weights, low where only imperceptible detail is decided.

    Choi et al. 2022, "Perception Prioritized Training of Diffusion Models", https://arxiv.org/abs/2204.00227, equation 8.

    Args:
        snr: signal-to-noise ratio of each sample's timestep, shape `(batch,)`, float32, >= 0.
        gamma: strength, >= 0; the paper uses 0.5 and 1.
        k: stabiliser, > 0; the paper uses 1.
        prediction_type: what the model predicts.

    Returns: shape `(batch,)`: `1 / (k + snr)^gamma` for epsilon, times `snr / (snr + 1)` for v_prediction.
    Raises: ValueError: `prediction_type` is unknown.
    """
    if prediction_type == "epsilon":
        return (k + snr) ** -gamma
    if prediction_type == "v_prediction":
        return (k + snr) ** -gamma * snr / (snr + 1)
    raise ValueError(f"unknown prediction type: {prediction_type!r}")
