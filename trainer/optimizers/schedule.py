"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math

from trainer.config.optimizer import ScheduleConfig


def multiplier(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """What every learning rate is multiplied with at `step` (1 is the first), in (0, 1].

    It rises in a line over the warm-up and is 1 at its end; then it stays, or falls so that it would be 0 at the step
    after the last, for a last step of rate 0 would be wasted.
    """
    warmup = round(config.warmup_share * total_steps)
    if step <= warmup:
        return step / warmup
    if config.kind == "constant":
        return 1.0
    progress = (step - 1 - warmup) / max(1, total_steps - warmup)
    return 1.0 - progress if config.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
