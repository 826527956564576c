"""Pictures that were compressed until it shows."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out

POOR_QUALITY, BAD_QUALITY = 60, 35
BLOCKS = 1.3


def find(facts: Facts) -> list[Finding]:
    """By what the file says of its quality, and by the blocks of 8 px that an earlier compression left in any format."""
    found = []
    for picture, measures in facts.measured:
        quality, blocks = measures.jpeg_quality, measures.blockiness
        if quality and quality < POOR_QUALITY:
            message = f"is a JPEG of quality {quality} (of 100)."
        elif blocks > BLOCKS:
            message = f"shows the blocks of a JPEG: steps between them are {blocks:.1f} times those inside."
        else:
            continue
        verdict = Verdict.LEAVE_OUT if 0 < quality < BAD_QUALITY and blocks > BLOCKS else Verdict.USABLE
        found.append(
            Finding(
                "compression",
                (picture.name,),
                f"{message} Look for a better copy.",
                verdict,
                fix=leave_out(picture.name),
            )
        )
    return found


CHECK = Check(
    "compression",
    "Heavy compression",
    "Blocks and halos around edges are repeated in every picture, so they are the first thing that is learned.",
    find,
)
