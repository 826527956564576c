"""Captions longer than the training reads."""

from __future__ import annotations

import re

from trainer.dataset.captions import compose_caption
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.record import CAPTIONS


def find(facts: Facts) -> list[Finding]:
    """Counted as they are trained, with the trigger word, by the tokenizer of the chosen base model."""
    found, limit = [], facts.settings.max_caption_tokens
    for picture in facts.scan.usable:
        if not picture.caption:
            continue
        number = max(_count(facts, caption) for caption in picture.captions)
        if number > limit:
            message = f"has a caption of {number} tokens: what follows the first {limit} is not seen."
            short = "\n".join(filter(None, (_fitting(facts, caption) for caption in picture.captions)))
            fix = (
                Fix("Cut the caption where it is cut in training", {(CAPTIONS, picture.name): short}) if short else None
            )
            found.append(Finding("caption_length", (picture.name,), message, Verdict.USABLE, fix=fix))
        elif (joined := _count(facts, picture.caption)) > limit:
            message = (
                f"has {len(picture.captions)} captions of {joined} tokens together: where they are read as one, as without "
                f"`data.several_captions`, what follows the first {limit} is not seen."
            )
            found.append(Finding("caption_length", (picture.name,), message, Verdict.GOOD))
    return found


def _count(facts: Facts, caption: str) -> int:
    return facts.count_tokens(_trained(facts, caption))


def _fitting(facts: Facts, caption: str) -> str:
    return caption if _count(facts, caption) <= facts.settings.max_caption_tokens else shortened(facts, caption)


def _trained(facts: Facts, caption: str) -> str:
    return compose_caption(caption, facts.info.trigger_word, "", True)


def shortened(facts: Facts, caption: str) -> str:
    """As much of a caption as is read: whole tags where it is made of tags, whole words otherwise."""
    pieces = re.findall(r"[^,]+,?", caption) if caption.count(",") > 2 else re.findall(r"\S+\s*", caption)
    # Found by halving: token counts grow with every piece.
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        text = "".join(pieces[:middle]).strip(" ,")
        is_short = facts.count_tokens(_trained(facts, text)) <= facts.settings.max_caption_tokens
        low, high = (middle, high) if is_short else (low, middle - 1)
    return "".join(pieces[:low]).strip(" ,")


CHECK = Check(
    "caption_length",
    "Long captions",
    "Beyond the limit (`data.max_caption_tokens`) a caption is cut: what was meant to stay changeable is learned after all.",
    find,
)
