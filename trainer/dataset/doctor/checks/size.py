"""Pictures with fewer pixels than the training size."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out

_FAR_TOO_SMALL = 0.5


def find(facts: Facts) -> list[Finding]:
    """By area, as the buckets have it."""
    found, resolution = [], facts.settings.resolution
    for picture in facts.scan.usable:
        share = (picture.width * picture.height) ** 0.5 / resolution
        if share < 1:
            message = f"is {picture.width}×{picture.height} px: {1 / share:.1f} times enlarged for {resolution}."
            verdict = Verdict.LEAVE_OUT if share < _FAR_TOO_SMALL else Verdict.USABLE
            fix = leave_out(picture.name)
            found.append(Finding("size", (picture.name,), message, verdict, fix=fix))
    return found


CHECK = Check(
    "size",
    "Too small",
    "Pictures smaller than the training size are enlarged, and the LoRA learns how that looks.",
    find,
)
