"""Captions that contradict one another, or themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.record import CAPTIONS

_OPPOSITES = (
    {"day", "night"},
    {"indoors", "outdoors"},
    {"open mouth", "closed mouth"},
    {"open eyes", "closed eyes"},
    {"standing", "sitting", "lying"},
    {"short hair", "long hair", "bald"},
    {"from above", "from below"},
    {"from behind", "from the front"},
    {"monochrome", "colorful"},
    {"solo", "2girls", "2boys", "multiple girls", "multiple boys"},
    {"1girl", "2girls", "multiple girls"},
    {"1boy", "2boys", "multiple boys"},
)
_COLOURED = re.compile(r"(\w+) (hair|eyes)")
_COLOURS = {"black", "brown", "blonde", "red", "pink", "purple", "blue", "green", "white", "grey", "gray", "orange"}


def find(facts: Facts) -> list[Finding]:
    """Of each group of equal pictures and of each single caption."""
    captions = {picture.name: "\n".join(picture.captions) for picture in facts.scan.usable}
    found = []
    for group in facts.alike:
        texts = {name: captions[name] for name in group if captions[name]}
        if len({_words(text) for text in texts.values()}) > 1:
            said = _difference(texts.values())
            found.append(Finding("contradictions", tuple(texts), said, Verdict.GOOD, fix=_one_caption(texts)))
    for name, caption in captions.items():
        for both in opposites(tags(caption)):
            message = f"has a caption that says both “{both[0]}” and “{both[1]}”."
            found.append(Finding("contradictions", (name,), message, Verdict.USABLE))
    return found


def _one_caption(texts: Mapping[str, str]) -> Fix:
    """The captions of the one of them that says most, for all of them."""
    longest = max(texts, key=lambda name: len(texts[name]))
    changes = {(CAPTIONS, name): texts[longest] for name in texts if texts[name] != texts[longest]}
    return Fix(f"The caption of {longest} for all of them", changes)


def tags(caption: str) -> frozenset[str]:
    """What stands between commas, in lower case; several captions have one a line."""
    parts = re.split(r"[,\n]", caption)
    return frozenset(part.strip().casefold().replace("_", " ") for part in parts if part.strip())


def opposites(of: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of tags that cannot both be true of one subject, sorted."""
    given = set(of)
    found = {tuple(sorted(given & each)[:2]) for each in _OPPOSITES if len(given & each) > 1}
    for what in ("hair", "eyes"):
        colours = sorted(t for t in given if (m := _COLOURED.fullmatch(t)) and m[2] == what and m[1] in _COLOURS)
        # Two colours are a usual style of both (multicolored hair, heterochromia) where the tags say so.
        if len(colours) > 1 and not given & {"multicolored hair", "two-tone hair", "gradient hair", "heterochromia"}:
            found.add((colours[0], colours[1]))
    return sorted((a, b) for a, b in found)


def _words(caption: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", caption.casefold()))


def _difference(captions: Iterable[str]) -> str:
    sets = [tags(caption) for caption in captions]
    only = sorted(frozenset.union(*sets) - frozenset.intersection(*sets))
    across = [f"“{a}” and “{b}”" for a, b in opposites(frozenset.union(*sets))]
    if across:
        return f"These show the same, but their captions contradict one another: {', '.join(across[:4])}."
    return "These show the same, but their captions differ: " + ", ".join(f"“{tag[:60]}”" for tag in only[:6]) + "."


CHECK = Check(
    "contradictions",
    "Contradictions",
    "Where the same thing is called now this, now that, neither word comes to mean it.",
    find,
)
