"""Whether there are enough pictures, and enough different ones."""

from __future__ import annotations

import numpy as np

from trainer.dataset.doctor.checks.outliers import features
from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict

FEW = 8
_CLOSE = 0.12


def find(facts: Facts) -> list[Finding]:
    """Remarks about the set: few pictures, many repetitions, all much the same."""
    found, number = [], len(facts.measured)
    repeated = sum(len(group) - 1 for group in facts.alike)
    if 0 < number - repeated < FEW:
        message = f"There are {number - repeated} different pictures; a LoRA learns well from 15 to 50."
        found.append(Finding("variety", (), message, Verdict.GOOD))
    if number >= FEW and repeated * 4 >= number:
        message = f"{repeated} of {number} pictures repeat others: there are only {number - repeated} different ones."
        found.append(Finding("variety", (), message, Verdict.GOOD))
    elif number >= FEW:
        values = features([measures for _, measures in facts.measured])
        apart = float(np.median(np.linalg.norm(values - np.median(values, axis=0), axis=1)))
        if apart < _CLOSE:
            message = "All pictures are much alike in colours and composition: the LoRA will know little else."
            found.append(Finding("variety", (), message, Verdict.GOOD))
    return found


CHECK = Check(
    "variety",
    "Variety",
    "From a few pictures, or many of the same, a LoRA learns the pictures by heart instead of what they have in common.",
    find,
)
