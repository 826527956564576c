"""Files that cannot be used, or are called what they are not. The scan finds them; here they get a verdict."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out

_REMARKS = ("suffix", "animated", "exif", "colour_profile")


def find(facts: Facts) -> list[Finding]:
    """Pictures with an error, and remarks about files."""
    found = []
    for picture in facts.scan.pictures:
        for problem in picture.problems:
            words = f"{problem.message} {problem.fix}".strip()
            if problem.is_error:
                fix = leave_out(picture.name)
                found.append(Finding("files", (picture.name,), words, Verdict.LEAVE_OUT, fix=fix))
            elif problem.code in _REMARKS:
                found.append(Finding("files", (picture.name,), words, Verdict.GOOD))
    return found


CHECK = Check(
    "files",
    "Files",
    "A file that cannot be read teaches nothing; one that is read otherwise than its name says may surprise other programs.",
    find,
)
