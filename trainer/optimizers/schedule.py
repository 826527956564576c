"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config.optimizer import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """What every learning rate is multiplied with at `step` (1 is the first), in (0, 1].

    It rises in a line over the warm-up and is 1 at its end; then it stays, or falls so that it would be 0 at the step
    after the last, for a last step of rate 0 would be wasted.
    """
    warmup = round(config.warmup_share * total_steps)
    if step <= warmup:
        return step / warmup
    return _SHAPES[config.kind](config, (step - 1 - warmup) / max(1, total_steps - warmup))


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# Heights at a progress in [0, 1) after the warm-up. REX is Chen et al. 2021, https://arxiv.org/abs/2107.04197, equation 2.
_SHAPES: dict[str, Callable[[ScheduleConfig, float], float]] = {
    "constant": lambda config, progress: 1.0,
    "cosine": lambda config, progress: _cosine(progress),
    # Cosine with warm restarts: Loshchilov & Hutter 2016, https://arxiv.org/abs/1608.03983, with cycles of one length.
    "cosine_with_restarts": lambda config, progress: _cosine(config.num_cycles * progress % 1.0),
    "linear": lambda config, progress: 1.0 - progress,
    "polynomial": lambda config, progress: (1.0 - progress) ** config.power,
    "rex": lambda config, progress: (1.0 - progress) / (0.5 + 0.5 * (1.0 - progress)),
}
