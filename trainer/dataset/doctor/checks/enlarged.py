"""Pictures that were enlarged: they have more pixels than detail."""

from __future__ import annotations

from trainer.dataset.doctor.checks.sharpness import BLURRED, detail_at
from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.spectrum import finest

ENLARGED = 0.83
_TOP = -1.9
"""Mean level of the two highest bands, in powers of ten, above which there is detail (or noise) to the last pixel."""


def find(facts: Facts) -> list[Finding]:
    """Pictures whose detail does not do for the training size though their pixels would. Blurred ones are said elsewhere."""
    found = []
    for picture, measures in facts.measured:
        share = detail_at(measures, facts.settings.resolution)
        if is_enlarged(measures) and BLURRED <= share < ENLARGED:
            real = finest(measures.spectrum)
            size = f"{round(measures.width * real)}×{round(measures.height * real)}"
            message = f"is {measures.width}×{measures.height} px, with the detail of about {size}: it was enlarged."
            fix = leave_out(picture.name)
            found.append(Finding("enlarged", (picture.name,), message, Verdict.USABLE, fix=fix))
    if len(found) * 2 > len(facts.measured):
        message = (
            f"{len(found)} of {len(facts.measured)} pictures have less detail than pixels, as enlarged or softly drawn "
            "ones have. If there are originals, use those."
        )
        return [Finding("enlarged", (), message, Verdict.GOOD)]
    return found


def is_enlarged(measures: Measures) -> bool:
    """Whether the finest detail that the pixels could hold is missing."""
    bands = measures.spectrum
    return finest(bands) < ENLARGED and (bands[-1] + bands[-2]) / 2 - (bands[1] + bands[2]) / 2 < _TOP


CHECK = Check(
    "enlarged",
    "Enlarged",
    "An enlarged picture teaches soft edges and the marks of the enlarger; the smaller original is better.",
    find,
)
