"""Pictures without the fine detail that their training size could show."""

from __future__ import annotations

from statistics import median

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.spectrum import finest

BLURRED, VERY_BLURRED = 0.4, 0.22
_OF_SET = 0.7
"""A picture is only called soft where it is softer than this share of what the set usually is: soft brushes are a style."""


def find(facts: Facts) -> list[Finding]:
    """Pictures that are out of focus, moved, or were enlarged fourfold and more."""
    shares = {picture.name: detail_at(measures, facts.settings.resolution) for picture, measures in facts.measured}
    usual = median(shares.values()) if shares else 1.0
    found = [_finding(name, share) for name, share in shares.items() if share < min(BLURRED, _OF_SET * usual)]
    num_soft = sum(1 for share in shares.values() if share < BLURRED)
    if num_soft * 2 > len(shares) > 1:
        message = (
            f"{num_soft} of {len(shares)} pictures have no fine detail at the training size. If that is no style of "
            "soft brushes, the originals were sharper: look for those."
        )
        found.insert(0, Finding("sharpness", (), message, Verdict.GOOD))
    return found


def detail_at(measures: Measures, resolution: int) -> float:
    """Share of the detail that the training size could show which is there; small pictures are judged at their own size."""
    scale = (measures.width * measures.height) ** 0.5 / resolution
    return min(1.0, finest(measures.spectrum) * max(1.0, scale))


def _finding(name: str, share: float) -> Finding:
    message = f"has {share:.0%} of the detail of a sharp picture: out of focus, moved, or enlarged a lot."
    verdict = Verdict.LEAVE_OUT if share < VERY_BLURRED else Verdict.USABLE
    return Finding("sharpness", (name,), message, verdict, fix=leave_out(name))


CHECK = Check("sharpness", "Blur", "The LoRA learns the blur along with the rest, and its pictures become soft.", find)
