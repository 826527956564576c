"""Pictures that are there more than once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.spectrum import finest
from trainer.dataset.record import CAPTIONS, EXCLUDED
from trainer.dataset.scan import DatasetScan

_LOSSLESS = {".png", ".apng", ".bmp", ".dib", ".tif", ".tiff"}
_GREYS = (0, 21, 42, 63)
"""Places of the greys among a picture's 4 x 4 x 4 colours."""


def find(facts: Facts) -> list[Finding]:
    """Each group, with the picture to keep: the one with the most detail."""
    return [_group(facts, group) for group in facts.alike]


def _group(facts: Facts, group: tuple[str, ...]) -> Finding:
    merits = {name: _merits(name, facts.measures[name]) for name in group}
    keep = max(group, key=lambda name: merits[name])
    rest = tuple(name for name in group if name != keep)
    best, second = facts.measures[keep], max(merits[name] for name in rest)
    why = next((word for word, mine, theirs in zip(_WHY, merits[keep], second, strict=True) if mine > theirs), "")
    if why:
        advice = f"{keep} is the best to keep: it is {best.width}×{best.height} px and {why}."
    else:
        advice = f"One is as good as the other: keep {keep}, for instance."
    message = f"These {len(group)} pictures show the same. {advice}"
    fix = keep_only(facts.scan, group, keep)
    return Finding("duplicates", group, message, Verdict.LEAVE_OUT, against=rest, fix=fix, keep=keep)


_WHY = ("has the most detail of them", "is in colour", "was kept without loss", "was compressed the least")


def _merits(name: str, measures: Measures) -> tuple[float, bool, bool, int]:
    """What tells the best of several versions, as in `_WHY`: pixels that hold detail, then what was lost otherwise."""
    is_coloured = int(measures.colours.sum(dtype=int)) > sum(int(measures.colours[place]) for place in _GREYS)
    return (
        measures.width * measures.height * finest(measures.spectrum) ** 2,
        is_coloured,
        Path(name).suffix.lower() in _LOSSLESS,
        measures.jpeg_quality,
    )


def keep_only(scan: DatasetScan, group: tuple[str, ...], keep: str) -> Fix:
    """Leave all of a group out but one, which takes over the caption of another if it has none."""
    changes: dict[tuple[str, str], Any] = {(EXCLUDED, name): True for name in group if name != keep}
    text = _caption_of(scan, group) if not _caption_of(scan, (keep,)) else ""
    if not text:
        return Fix(f"Keep {keep} alone", changes)
    return Fix(f"Keep {keep} alone, with the caption “{text[:60]}”", {**changes, (CAPTIONS, keep): text})


def caption_of_same(facts: Facts, name: str) -> str:
    """The caption that another picture has which shows the same as this one; empty where there is none."""
    return _caption_of(facts.scan, next((group for group in facts.alike if name in group), ()))


def _caption_of(scan: DatasetScan, names: Sequence[str]) -> str:
    """The longest caption of some pictures, its variants one a line."""
    return max(("\n".join(facts.captions) for facts in scan.usable if facts.name in names), key=len, default="")


CHECK = Check(
    "duplicates",
    "Duplicates",
    "What is there twice is learned twice as hard: the LoRA copies that picture instead of learning what all have in common.",
    find,
)
