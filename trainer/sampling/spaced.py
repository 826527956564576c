"""Schedulers whose steps lie where the quantiles of a beta distribution are ("Beta" in other programs)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

Array = npt.NDArray[np.float64]
SHAPE = 0.6
"""Both parameters of the distribution, as published (arXiv 2407.12173) and used by other programs."""
_GRID = 20_001


def beta_quantiles(probabilities: Array, shape: float = SHAPE) -> Array:
    """Where the cumulative Beta(shape, shape) distribution reaches each probability.

    With x = sin² u its density is `(sin u cos u)^(2 shape - 1)`: bounded, where in x it is infinite at both ends; so a plain
    sum on a grid will do, and scipy is not needed.
    """
    angles = np.linspace(0.0, np.pi / 2, _GRID)
    density = (np.sin(angles) * np.cos(angles)) ** (2 * shape - 1)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.sin(np.interp(probabilities, cumulative / cumulative[-1], angles)) ** 2


class _BetaSteps:
    """Takes the place of the exponential spacing, for diffusers' own "beta" wants scipy and spaces sigmas, not timesteps."""

    def _convert_to_exponential(self, in_sigmas: Any, num_inference_steps: int) -> Array:
        alphas = np.asarray(getattr(self, "alphas_cumprod"), dtype=np.float64)  # noqa: B009 - of the other parent
        wanted = beta_quantiles(1 - np.linspace(0, 1, num_inference_steps, endpoint=False)) * (len(alphas) - 1)
        log_sigmas = np.log((1 - alphas) / alphas) / 2
        return np.exp(np.interp(wanted, np.arange(len(alphas)), log_sigmas))


class BetaEulerScheduler(_BetaSteps, EulerDiscreteScheduler):
    """Euler's method on beta-spaced steps."""


class BetaDPMSolverMultistepScheduler(_BetaSteps, DPMSolverMultistepScheduler):
    """DPM-Solver++ (2M) on beta-spaced steps."""
