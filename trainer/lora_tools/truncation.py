"""Rules that say how many singular values of each layer are kept."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.errors import ConfigError
from trainer.lora_tools.lowrank import numerical_rank

Rule = Literal["rank", "sv_fro", "sv_cumulative", "sv_ratio", "size_mb", "exact"]


@dataclass(frozen=True)
class Truncation:
    """How a layer's change is cut to a lower rank.

    Attributes:
        rule: "rank": `value` ranks. "sv_fro": at least this share of the Frobenius norm is kept. "sv_cumulative": at
            least this share of the sum of singular values. "sv_ratio": those of at least the largest divided by
            `value`. "size_mb": what fits into a file of this size, over all layers. "exact": all.
            The three sv rules are those of kohya's `resize_lora.py`.
        value: of the rule; unused for "exact".
        max_rank: the most that a layer gets under any rule.

    Raises: ConfigError: the value is out of the rule's range.
    """

    rule: Rule
    value: float = 0.0
    max_rank: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            "rank": not (self.value >= 1 and float(self.value).is_integer()),
            "sv_fro": not 0 < self.value <= 1,
            "sv_cumulative": not 0 < self.value <= 1,
            "sv_ratio": not self.value > 1,
            "size_mb": not (self.value > 0 and math.isfinite(self.value)),
            "exact": False,
        }
        needed = {
            "rank": "a whole number from 1 on",
            "sv_fro": "a share above 0 and up to 1",
            "sv_cumulative": "a share above 0 and up to 1",
            "sv_ratio": "a number above 1",
            "size_mb": "a size above 0 in MB",
        }
        if wrong[self.rule]:
            raise ConfigError(f"{self.value:g} is no value for {self.rule}: it takes {needed[self.rule]}.")
        if self.max_rank is not None and self.max_rank < 1:
            raise ConfigError(f"The largest rank must be at least 1, not {self.max_rank}.")

    def __str__(self) -> str:
        return self.rule if self.rule == "exact" else f"{self.rule} {self.value:g}"

    @property
    def cap(self) -> int | None:
        """The highest rank that can come of it, where that is known beforehand."""
        limits = [int(self.value)] if self.rule == "rank" else []
        limits += [self.max_rank] if self.max_rank is not None else []
        return min(limits, default=None)

    @property
    def values_needed(self) -> int | None:
        """How many of the largest singular values decide; None for all."""
        # The sum of all values is not known from the largest; that of their squares is the norm.
        return None if self.rule == "sv_cumulative" else self.cap

    def choose(self, values: Tensor, energy: float, shape: tuple[int, int]) -> int:
        """The rank for a layer.

        Args:
            values: its singular values, descending; at least `values_needed`.
            energy: the square of its Frobenius norm.
            shape: `(out, in)` of its weight.

        Returns: from 1 to the number of values, also where all are zero.
        """
        most = min(self.cap or len(values), len(values))
        if self.rule in ("rank", "exact"):
            wanted = numerical_rank(values, shape)
        elif self.rule == "sv_ratio":
            wanted = int((values >= values[0] / self.value).sum())
        else:
            is_fro = self.rule == "sv_fro"
            sums = (values.double().square() if is_fro else values.double()).cumsum(0)
            whole = max(energy, float(sums[-1])) if is_fro else float(sums[-1])
            share = self.value**2 if is_fro else self.value
            # Rounding must not ask for more than all.
            wanted = int((sums < share * whole * (1 - 1e-12)).sum()) + 1
        return max(1, min(wanted, most))


def ranks_for_size(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget_bytes: int, element_bytes: int
) -> dict[str, int]:
    """The ranks that lose the least of all layers together in a file of a given size.

    A value's square is what it saves of the error, its layer's sides are what it costs; taking the best ratio first is
    optimal but for the last value, because the values of a layer descend. Every layer keeps one, for some tools skip
    an attention layer of which a part is missing.

    Args:
        spectra: singular values by layer, descending.
        shapes: `(out, in)` by layer.
        budget_bytes: for the matrices alone.
        element_bytes: of a number in the file.

    Raises: ConfigError: the budget is too small for rank 1 everywhere.
    """
    costs = {name: (shapes[name][0] + shapes[name][1]) * element_bytes for name in spectra}
    left = budget_bytes - sum(costs.values())
    if left < 0:
        raise ConfigError(
            f"The file cannot be that small: rank 1 on all {len(costs)} layers takes {(budget_bytes - left) / 1e6:.2f} MB."
        )
    ranks = dict.fromkeys(spectra, 1)
    values = {name: spectrum.double().square().tolist() for name, spectrum in spectra.items()}
    queue = [(-squares[1] / costs[name], name) for name, squares in values.items() if len(squares) > 1]
    heapq.heapify(queue)
    while queue:
        gain, name = heapq.heappop(queue)
        # A layer that is too wide for what is left ends here; narrower ones may still fit.
        if gain == 0 or costs[name] > left:
            continue
        left -= costs[name]
        ranks[name] += 1
        if ranks[name] < len(values[name]):
            heapq.heappush(queue, (-values[name][ranks[name]] / costs[name], name))
    return {name: min(rank, max(1, numerical_rank(spectra[name], shapes[name]))) for name, rank in ranks.items()}


def element_bytes(dtype: torch.dtype) -> int:
    """Bytes of a number."""
    return torch.empty((), dtype=dtype).element_size()
