"""Turns steps into events: each of the first, then about two a second, and always the last."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.events import StepDone
from trainer.models.devices import memory_bytes
from trainer.training.state import TrainParts, TrainState
from trainer.training.step import FiniteGuard, StepResult, rate_at

_FIRST_STEPS = 20
_INTERVAL_SECONDS = 0.5


@dataclass
class Reporter:
    """Gathers results on the device and reads them only when it is time to report."""

    parts: TrainParts
    guard: FiniteGuard
    first_step: int
    _results: list[StepResult] = field(default_factory=list)
    _seconds: float = 0.0
    _last_time: float = field(default_factory=time.monotonic)
    _rate: float = 0.0

    def add(self, result: StepResult, seconds: float, state: TrainState) -> None:
        """Take a step's result, which took `seconds` of training."""
        self._results.append(result)
        self._seconds += seconds
        is_first = result.step < self.first_step + _FIRST_STEPS
        is_last = result.step == self.parts.total_steps
        is_due = is_first or is_last or time.monotonic() - self._last_time >= _INTERVAL_SECONDS
        # Clocks differ, and all processes must look for what is broken after the same step.
        if self.parts.ranks.from_main(is_due):
            self.flush(state)

    def drop(self) -> None:
        """Forget what was gathered and not reported: those steps are done again."""
        self._results, self._seconds = [], 0.0

    def flush(self, state: TrainState) -> None:
        """Report what was gathered. Raises NonFiniteLossError."""
        results, self._results = self._results, []
        if not results:
            return
        self.guard.check()
        last, total = results[-1], self.parts.total_steps
        rate = len(results) / max(self._seconds, 1e-9)
        # The first steps warm caches and kernels up; a running mean forgets them.
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        prior = [result.prior_loss for result in results if result.prior_loss is not None]
        factor = found_rate(self.parts.optimizer.optimizer) * state.remedies.rate_factor
        self.parts.context.emit(
            StepDone(
                step=last.step,
                total_steps=total,
                loss=_mean([result.loss for result in results]),
                learning_rates={part: rate_at(self.parts, part, last.step) * factor for part in self.parts.groups},
                grad_norm=_mean_of_finite([result.grad_norm for result in results]),
                steps_per_second=self._rate,
                eta_seconds=(total - last.step) / self._rate,
                memory_bytes=memory_bytes(self.parts.device),
                epoch=self.parts.epoch_at(state.step),
                prior_loss=_mean(prior) if prior else None,
            )
        )
        self._seconds, self._last_time = 0.0, time.monotonic()


def found_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate that Prodigy or D-Adaptation has found (its `d`); 1 for optimizers whose rates are set."""
    return float(optimizer.param_groups[0].get("d", 1.0))


def _mean(values: list[Tensor]) -> float:
    return float(torch.stack(values).mean())


def _mean_of_finite(values: list[Tensor]) -> float | None:
    """Scaled gradients (fp16) overflow now and then by design, and JSON has no infinity."""
    stacked = torch.stack(values)
    finite = stacked[stacked.isfinite()]
    return float(finite.mean()) if len(finite) else None
