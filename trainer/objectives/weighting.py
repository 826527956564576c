"""Loss weights: pure functions of tensors."""

from __future__ import annotations

from torch import Tensor

from trainer.objectives.diffusion import PredictionType


def signal_to_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """SNR(t) = a_t / (1 - a_t), shape `(batch,)`, of `alphas_cumprod` `(num_timesteps,)` and `timesteps` `(batch,)`."""
    alpha = alphas_cumprod[timesteps]
    return alpha / (1 - alpha)


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


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample, float32 `(batch,)`."""
    return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
