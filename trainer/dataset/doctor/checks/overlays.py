"""Marks that stand at the same place of most pictures: watermarks, signatures, frames."""

from __future__ import annotations

import numpy as np

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict
from trainer.dataset.doctor.measures import EDGES

_FEWEST = 8
_OFTEN, _SELDOM = 0.85, 0.4
_LEAST_CELLS = 8


def find(facts: Facts) -> list[Finding]:
    """One remark about the set. It is a guess: the place is told, and no verdict is made of it.

    After Dekel et al. 2017, "On the Effectiveness of Visible Watermarks": what is the same in all pictures stays when
    their edges are counted at each place, and all else averages out.
    """
    pictures = list({id(m): m for _, m in facts.measured}.values())
    if len(pictures) < _FEWEST:
        return []
    share = np.mean([np.unpackbits(each.edges) for each in pictures], axis=0).reshape(EDGES, EDGES)
    if np.median(share) > _SELDOM:
        return []  # edges everywhere: nothing stands out
    rows, columns = np.nonzero(share >= _OFTEN)
    if len(rows) < _LEAST_CELLS:
        return []
    down, across = (_third(np.median(values)) for values in (rows, columns))
    place = {"middle middle": "in the middle"}.get(f"{down} {across}", f"at the {_DOWN[down]}, {_ACROSS[across]}")
    message = (
        f"Something stands at the same place of most pictures, mainly {place}: perhaps a watermark, a signature or a "
        "frame. Look at a few of them."
    )
    return [Finding("overlays", (), message, Verdict.GOOD)]


_DOWN = {"first": "top", "middle": "middle", "last": "bottom"}
_ACROSS = {"first": "left", "middle": "centre", "last": "right"}


def _third(value: float) -> str:
    return "first" if value < EDGES / 3 else "last" if value >= 2 * EDGES / 3 else "middle"


CHECK = Check(
    "overlays",
    "Watermarks (a guess)",
    "A mark that is in every picture is learned first. Only marks at the same place of most pictures are noticed, not one in a single picture.",
    find,
)
