"""One thread or all of them?  Beside other busy programs one is often faster, because the others wait for the last."""

from __future__ import annotations

import time

import torch


class ThreadChooser:
    """Tries both settings now and then, a few steps each, and keeps the faster one."""

    def __init__(self, most: int, every: int = 40, trial: int = 2) -> None:
        self.choices = (1, most) if most > 1 else (1,)
        self.every, self.trial = every, trial
        self.count = 0
        self.took: dict[int, list[float]] = {}
        self.mark = time.monotonic()

    def step(self) -> None:
        """Call after each training step."""
        now = time.monotonic()
        phase = self.count % self.every
        if phase <= self.trial * len(self.choices) and phase > 0:
            self.took.setdefault(self.choices[(phase - 1) // self.trial], []).append(now - self.mark)
        self.count += 1
        phase = self.count % self.every
        if phase == 0:
            self.took = {}
        elif phase <= self.trial * len(self.choices):
            torch.set_num_threads(self.choices[(phase - 1) // self.trial])
        elif phase == self.trial * len(self.choices) + 1:
            torch.set_num_threads(min(self.took, key=lambda threads: min(self.took[threads])))
        self.mark = time.monotonic()
