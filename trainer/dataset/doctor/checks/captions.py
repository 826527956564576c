"""Pictures without a caption, and captions that stand at several different pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from trainer.dataset.captions import fill_template
from trainer.dataset.doctor.checks.duplicates import caption_of_same
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.record import CAPTIONS
from trainer.dataset.scan import PictureFacts

_TEMPLATE = "{trigger}, {name}"


def find(facts: Facts) -> list[Finding]:
    """Empty ones with a caption out of the file name, and repeated ones."""
    pictures_of = defaultdict[str, list[str]](list)
    for picture in facts.scan.usable:
        if picture.caption:
            pictures_of[picture.caption.casefold()].append(picture.name)
    without = [picture for picture in facts.scan.usable if not picture.caption]
    found = _of_the_set(facts, without) if facts.info.instance_prompt else [_empty(facts, each) for each in without]
    for same in pictures_of.values():
        if len(same) > 1 and not any(set(same) <= set(group) for group in facts.alike):
            caption = next(p.caption for p in facts.scan.usable if p.name == same[0]) or ""
            message = f"{len(same)} different pictures have the caption “{caption[:120]}”: it describes none of them."
            found.append(Finding("captions", tuple(same), message, Verdict.GOOD))
    return found


def _of_the_set(facts: Facts, pictures: Sequence[PictureFacts]) -> list[Finding]:
    """A remark: they are trained with the data set's own words, such as the name of kohya's folder."""
    if not pictures:
        return []
    words = facts.info.instance_prompt[:120]
    message = f"{len(pictures)} pictures have no caption of their own: they are trained with the data set's, “{words}”."
    return [Finding("captions", tuple(picture.name for picture in pictures), message, Verdict.GOOD)]


def _empty(facts: Facts, picture: PictureFacts) -> Finding:
    word = facts.info.trigger_word.strip()
    text = caption_of_same(facts, picture.name)
    if not text:
        text = fill_template(_TEMPLATE, stem=picture.path.stem, trigger_word=word)
    fix = Fix(f"Caption “{text[:60]}”", {(CAPTIONS, picture.name): text}) if text else None
    trained = "with the trigger word alone" if word else "as if nothing were to be said of it"
    return Finding("captions", (picture.name,), f"has no caption: it is trained {trained}.", Verdict.USABLE, fix=fix)


CHECK = Check(
    "captions",
    "Captions",
    "What the caption names stays changeable, what it leaves out is learned. Without captions, or with one for all, the LoRA learns all of a "
    "picture as one thing.",
    find,
)
