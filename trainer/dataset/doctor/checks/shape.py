"""Pictures much longer than wide, or wider than long."""

from __future__ import annotations

from trainer.config.data import DataConfig
from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict

LONGEST = float(DataConfig.model_fields["max_aspect_ratio"].default)


def find(facts: Facts) -> list[Finding]:
    """Those of which the longest bucket loses more than a fifth."""
    found = []
    for picture in facts.scan.usable:
        ratio = max(picture.width, picture.height) / min(picture.width, picture.height)
        lost = 1 - LONGEST / ratio
        if lost > 0.2:
            message = f"is {picture.width}×{picture.height} px: {lost:.0%} of its length is cut off. Crop it by hand."
            found.append(Finding("shape", (picture.name,), message, Verdict.USABLE))
    return found


CHECK = Check(
    "shape", "Shape", "What is much longer than the longest bucket loses its ends, whatever is on them.", find
)
