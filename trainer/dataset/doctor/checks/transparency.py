"""Pictures with transparent parts."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out


def find(facts: Facts) -> list[Finding]:
    """As the scan says it; a wholly transparent picture is nothing but white."""
    found = []
    for picture in facts.scan.usable:
        for problem in picture.problems:
            if problem.code == "transparent":
                message = f"{problem.message} {problem.fix}".strip()
                is_empty = any(other.code == "blank" for other in picture.problems)
                verdict = Verdict.LEAVE_OUT if is_empty else Verdict.GOOD
                found.append(
                    Finding(
                        "transparency",
                        (picture.name,),
                        message,
                        verdict,
                        fix=leave_out(picture.name) if is_empty else None,
                    )
                )
    return found


CHECK = Check(
    "transparency",
    "Transparency",
    "A model knows no transparency: those parts are filled with white, which is then learned as the background. "
    "`data.masks alpha` keeps it from being learned.",
    find,
)
