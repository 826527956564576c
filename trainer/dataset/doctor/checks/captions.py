"""Pictures without a caption, and captions that stand at several different pictures."""

from __future__ import annotations

from collections import defaultdict

from trainer.dataset.captions import fill_template
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.record import CAPTIONS

_TEMPLATE = "{trigger}, {name}"


def find(facts: Facts) -> list[Finding]:
    """Empty ones with a caption out of the file name, and repeated ones."""
    found, pictures_of = [], defaultdict[str, list[str]](list)
    for picture in facts.scan.usable:
        if picture.caption:
            pictures_of[picture.caption.casefold()].append(picture.name)
            continue
        text = fill_template(_TEMPLATE, stem=picture.path.stem, trigger_word=facts.info.trigger_word)
        fix = Fix(f"Caption “{text[:60]}”", {(CAPTIONS, picture.name): text}) if text else None
        message = "has no caption: it is trained with the trigger word alone."
        found.append(Finding("captions", (picture.name,), message, Verdict.USABLE, fix=fix))
    for same in pictures_of.values():
        if len(same) > 1 and not any(set(same) <= set(group) for group in facts.alike):
            caption = next(p.caption for p in facts.scan.usable if p.name == same[0]) or ""
            message = f"{len(same)} different pictures have the caption “{caption[:120]}”: it describes none of them."
            found.append(Finding("captions", tuple(same), message, Verdict.GOOD))
    return found


CHECK = Check(
    "captions",
    "Captions",
    "What the caption names stays changeable, what it leaves out is learned. Without captions, or with one for all, the LoRA learns all of a "
    "picture as one thing.",
    find,
)
