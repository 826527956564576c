"""diffusers' LMS scheduler without scipy, which it needs for one integral only."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler


class ExactLMSDiscreteScheduler(LMSDiscreteScheduler):
    """Linear multistep of Katherine Crowson's k-diffusion; its coefficients are integrated exactly.

    The integrand is a Lagrange polynomial of degree 3 at most, so a quadrature is not needed: its antiderivative is
    known.
    """

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The integral of the `current_order`-th Lagrange basis polynomial from this sigma to the next.

        Args:
            order: how many steps back are used.
            t: index of the step.
            current_order: which of the steps back, 0 being this one.
        """
        nodes = np.asarray(self.sigmas[t - order + 1 : t + 1], dtype=np.float64)[::-1]
        others = np.delete(nodes, current_order)
        basis = np.poly1d(others, r=True) / np.prod(nodes[current_order] - others)
        antiderivative = np.polyint(basis)
        return float(antiderivative(float(self.sigmas[t + 1])) - antiderivative(float(self.sigmas[t])))

    def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
        """One step. Of no higher order than there are steps behind it: diffusers' counts those that image-to-image left out."""
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)
