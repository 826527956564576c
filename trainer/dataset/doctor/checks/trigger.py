"""Captions without the trigger word."""

from __future__ import annotations

from trainer.dataset.captions import compose_caption, has_trigger_word
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.record import CAPTIONS


def find(facts: Facts) -> list[Finding]:
    """Remarks only: training puts the trigger word in front by itself."""
    word = facts.info.trigger_word.strip()
    captioned = [picture for picture in facts.scan.usable if picture.caption]
    if not word:
        if not captioned:
            return []
        message = "The data set has no trigger word: what is learned shows in every picture, whatever the prompt says."
        return [Finding("trigger", (), message, Verdict.GOOD)]
    found = []
    for picture in captioned:
        if not all(has_trigger_word(caption, word) for caption in picture.captions):
            text = "\n".join(compose_caption(caption, word, "", True) for caption in picture.captions)
            fix = Fix("Put the trigger word in front", {(CAPTIONS, picture.name): text})
            message = f"has a caption without “{word}”. Training here puts it in front; other programs do not."
            found.append(Finding("trigger", (picture.name,), message, Verdict.GOOD, fix=fix))
    return found


CHECK = Check(
    "trigger",
    "Trigger word",
    "The trigger word calls up what was learned; a caption without it teaches that the subject may come uncalled.",
    find,
)
