"""Plain bars around pictures."""

from __future__ import annotations

from trainer.dataset import record
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.doctor.measures import Measures

_SIDES = ("left", "top", "right", "bottom")
CROPS = "crops"


def find(facts: Facts) -> list[Finding]:
    """Pictures with bars at one or more sides."""
    found = []
    for picture, measures in facts.measured:
        if any(measures.bars):
            sides = ", ".join(f"{side} {px} px" for side, px in zip(_SIDES, measures.bars, strict=True) if px)
            message = f"has plain bars: {sides}."
            found.append(Finding("borders", (picture.name,), message, Verdict.USABLE, fix=_fix(picture.name, measures)))
    return found


def _fix(name: str, measures: Measures) -> Fix:
    if CROPS in record.DOCUMENTS:
        left, top, right, bottom = measures.bars
        box = [left, top, measures.width - right, measures.height - bottom]
        return Fix(f"Crop the bars of {name}", {(CROPS, name): box})
    return Fix(f"Leave {name} out", {(record.EXCLUDED, name): True})


CHECK = Check(
    "borders",
    "Borders",
    "Bars and frames are the same in every picture that has them: the LoRA draws them too.",
    find,
)
