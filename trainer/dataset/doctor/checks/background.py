"""Backgrounds of one colour."""

from __future__ import annotations

import numpy as np

from trainer.dataset.colour_names import colour_names
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict, leave_out
from trainer.dataset.record import CAPTIONS

_PLAIN = 6.0
_ALIKE = 24
_MOST = 0.6


def find(facts: Facts) -> list[Finding]:
    """Pictures of a single colour, and a background that most of the set shares."""
    found = []
    for picture in facts.scan.usable:
        if any(problem.code == "blank" for problem in picture.problems):
            fix = leave_out(picture.name)
            message = "is one colour all over: there is nothing to learn."
            found.append(Finding("background", (picture.name,), message, Verdict.LEAVE_OUT, fix=fix))
    plain = [(p.name, m.ground[1:]) for p, m in facts.measured if m.ground[0] < _PLAIN]
    if len(facts.measured) >= 5 and len(plain) >= _MOST * len(facts.measured):
        middle = sorted(plain, key=lambda each: sum(each[1]))[len(plain) // 2][1]
        same = [name for name, colour in plain if max(abs(a - b) for a, b in zip(colour, middle, strict=True)) < _ALIKE]
        if len(same) >= _MOST * len(facts.measured):
            colour = "#{:02x}{:02x}{:02x}".format(*middle)
            tag = f"{colour_names(np.array([middle]) / 255)[0]} background"
            message = (
                f"{len(same)} of {len(facts.measured)} pictures have the same plain background ({colour}). "
                f"Name it in their captions ('{tag}'), or it becomes part of what is learned."
            )
            found.append(Finding("background", (), message, Verdict.GOOD, fix=_named(facts, same, tag)))
    return found


def _named(facts: Facts, pictures: list[str], tag: str) -> Fix | None:
    """The background behind the captions that say nothing of one; pictures without a caption are another check's."""
    texts = {picture.name: picture.captions for picture in facts.scan.usable}
    lacking = [name for name in pictures if not all(map(_names_one, texts[name]))]
    if not lacking:
        return None
    changes = {(CAPTIONS, name): "\n".join(_with_tag(text, tag) for text in texts[name]) for name in lacking}
    return Fix(f"Add “{tag}” to {len(lacking)} captions", changes)


def _names_one(caption: str) -> bool:
    return "background" in caption.casefold()


def _with_tag(caption: str, tag: str) -> str:
    return caption if _names_one(caption) else f"{caption.rstrip(' ,.')}, {tag}"


CHECK = Check(
    "background",
    "Plain backgrounds",
    "What all pictures share is taken for the subject: the LoRA draws this background whatever the prompt says.",
    find,
)
