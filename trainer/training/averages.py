"""The weights that are used, where those that are trained are others: an average over the steps (EMA), or Schedule-Free's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from schedulefree import AdamWScheduleFree

from trainer.training.state import TrainParts


@contextmanager
def weights_in_use(parts: TrainParts) -> Iterator[None]:
    """For a while the trained weights are those that are measured, shown and exported; afterwards as before, to the bit."""
    optimizer = parts.optimizer.optimizer
    is_schedule_free = isinstance(optimizer, AdamWScheduleFree)
    if parts.average is None and not is_schedule_free:
        yield
        return
    # Schedule-Free's own way back from its average rounds: a run would depend on how often it was measured.
    kept = [weight.detach().clone() for weight in parts.trainable]
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.eval()
    if parts.average is not None:
        parts.average.write()
    try:
        yield
    finally:
        if isinstance(optimizer, AdamWScheduleFree):
            optimizer.train()
        with torch.no_grad():
            for weight, value in zip(parts.trainable, kept, strict=True):
                weight.copy_(value)
