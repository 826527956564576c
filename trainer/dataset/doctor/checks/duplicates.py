"""Pictures that are there more than once."""

from __future__ import annotations

from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.spectrum import finest
from trainer.dataset.record import EXCLUDED


def find(facts: Facts) -> list[Finding]:
    """Each group, with the picture to keep: the one with the most detail."""
    return [_group(facts, group) for group in facts.alike]


def _group(facts: Facts, group: tuple[str, ...]) -> Finding:
    keep = max(group, key=lambda name: detail(facts.measures[name]))
    rest = tuple(name for name in group if name != keep)
    best = facts.measures[keep]
    message = (
        f"These {len(group)} pictures show the same. {keep} is the best to keep: it is {best.width}×{best.height} px "
        "and has the most detail of them."
    )
    return Finding("duplicates", group, message, Verdict.LEAVE_OUT, against=rest, fix=keep_only(group, keep), keep=keep)


def detail(measures: Measures) -> tuple[float, int]:
    """Pixels that hold detail, then how little it was compressed: what tells the best of several versions."""
    return measures.width * measures.height * finest(measures.spectrum) ** 2, measures.jpeg_quality or 100


def keep_only(group: tuple[str, ...], keep: str) -> Fix:
    """Leave all of a group out but one."""
    return Fix(f"Keep {keep} alone", {(EXCLUDED, name): True for name in group if name != keep})


CHECK = Check(
    "duplicates",
    "Duplicates",
    "What is there twice is learned twice as hard: the LoRA copies that picture instead of learning what all have in common.",
    find,
)
