"""DPM++ SDE: the two-stage stochastic solver of k-diffusion, without torchsde."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler, KDPM2DiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


def ancestral(start: Tensor, end: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """From noise level `start` to `end`: the level that is stepped down to, and the noise that is put in anew after it."""
    up = torch.minimum(end, eta * (end**2 * (start**2 - end**2) / start**2).clamp(min=0) ** 0.5)
    return (end**2 - up**2) ** 0.5, up


class DPMSolverSDEScheduler(KDPM2DiscreteScheduler):
    """DPM-Solver++ (SDE) of order 2 with its middle at half of the step in log sigma (arXiv 2211.01095, k-diffusion's formula).

    The noise of the half and of the whole step are increments of one Brownian motion over sigma. k-diffusion reads them from a
    tree of torchsde; the two parts of a step are drawn here one after the other, which is the same law, from each picture's own
    generator. The sigmas are those of DPM2, whose middle is the same.
    """

    _noise: Tensor

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        eta: float = 1.0,
        return_dict: bool = True,
    ) -> Any:
        """One stage: an odd one goes to the middle of a step, an even one to its end."""
        if self.step_index is None:
            self._init_step_index(timestep)
        index, is_first = int(self.step_index or 0), self.state_in_first_order
        sigma = self.sigmas[index if is_first else index - 1]
        middle = self.sigmas_interpol[index + 1 if is_first else index]
        end = self.sigmas[index + 1 if is_first else index]
        clean = self._clean(model_output, sample, sigma if is_first else middle)
        if is_first and end == 0:
            result = clean
        else:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            if is_first or self.sample is None:
                self.sample, self._noise = sample, noise
                result = _towards(clean, sample, sigma, *ancestral(sigma, middle, eta), noise)
            else:
                parts = (sigma - middle).sqrt(), (middle - end).sqrt()
                whole = (parts[0] * self._noise + parts[1] * noise) / (sigma - end).sqrt()
                result = _towards(clean, self.sample, sigma, *ancestral(sigma, end, eta), whole)
                self.sample = None
        self._step_index = index + 1
        return (
            KDPM2DiscreteSchedulerOutput(prev_sample=result, pred_original_sample=clean)
            if return_dict
            else (result, clean)
        )

    def _clean(self, model_output: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
        kind = self.config.prediction_type
        if kind == "v_prediction":
            return sample / (sigma**2 + 1) - model_output * sigma / (sigma**2 + 1) ** 0.5
        return model_output if kind == "sample" else sample - sigma * model_output


def _towards(clean: Tensor, sample: Tensor, sigma: Tensor, down: Tensor, up: Tensor, noise: Tensor) -> Tensor:
    ratio = down / sigma
    return ratio * sample + (1 - ratio) * clean + up * noise
