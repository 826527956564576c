"""Which timesteps are trained how often: distributions over a range, without torch, so that the form can draw them."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from statistics import NormalDist

from trainer.config.objective import ObjectiveConfig

_NORMAL = NormalDist()
_FINENESS = 4096


def quantile(objective: ObjectiveConfig, share: float) -> float:
    """The place in the range, in [0, 1], below which `share` of the draws lie; 0 is the range's clean end.

    Esser et al. 2024, "Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206, section 3.1: the
    logit-normal density (equation 19) and mode sampling with heavy tails (equation 20).

    Args:
        objective: names the distribution and its shape.
        share: in (0, 1).
    """
    if objective.timestep_distribution == "logit_normal":
        normal = objective.timestep_mean + objective.timestep_std * _NORMAL.inv_cdf(share)
        # Both forms of the same function, neither of which overflows.
        return 1 / (1 + math.exp(-normal)) if normal >= 0 else math.exp(normal) / (1 + math.exp(normal))
    if objective.timestep_distribution == "mode":
        rest = 1 - share
        return 1 - rest - objective.timestep_mode_scale * (math.cos(math.pi / 2 * rest) ** 2 - 1 + rest)
    return share


def timestep_at(objective: ObjectiveConfig, share: float) -> int:
    """The timestep below which `share` (in (0, 1)) of the draws lie, within the trained range."""
    low, high = objective.min_timestep, objective.max_timestep
    return min(high - 1, low + int(quantile(objective, share) * (high - low)))


def density(objective: ObjectiveConfig, bins: int) -> list[float]:
    """How likely a draw falls into each of `bins` equal parts of 0 to 1000 timesteps; the sum is 1."""
    low, high = objective.min_timestep, objective.max_timestep
    # The middles of 4096 equally likely draws, ascending.
    grid = [quantile(objective, (index + 0.5) / _FINENESS) for index in range(_FINENESS)]

    def below(timestep: float) -> float:
        place = (timestep - low) / (high - low)
        if not 0 < place < 1:
            return float(place >= 1)
        return bisect_left(grid, place) / _FINENESS

    edges = [below(1000 * index / bins) for index in range(bins + 1)]
    return [upper - lower for lower, upper in pairwise(edges)]
