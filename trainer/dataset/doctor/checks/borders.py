"""Plain bars around pictures."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.record import CROPS
from trainer.dataset.scan import PictureFacts

_SIDES = ("left", "top", "right", "bottom")


def find(facts: Facts) -> list[Finding]:
    """Pictures with bars at one or more sides."""
    found = []
    for picture, measures in facts.measured:
        if any(measures.bars):
            sides = ", ".join(f"{side} {px} px" for side, px in zip(_SIDES, measures.bars, strict=True) if px)
            message = f"has plain bars: {sides}."
            found.append(Finding("borders", (picture.name,), message, Verdict.USABLE, fix=_fix(picture, measures)))
    return found


def _fix(picture: PictureFacts, measures: Measures) -> Fix:
    left, top, right, bottom = measures.bars
    box = picture.kept_part((left, top, measures.width - right, measures.height - bottom))
    return Fix(f"Crop the bars of {picture.name}", {(CROPS, picture.name): list(box)})


CHECK = Check(
    "borders",
    "Borders",
    "Bars and frames are the same in every picture that has them: the LoRA draws them too.",
    find,
)
