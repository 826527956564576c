"""Pictures much longer than wide, or wider than long."""

from __future__ import annotations

import numpy as np

from trainer.config.data import DataConfig
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Verdict
from trainer.dataset.doctor.measures import EDGES, Measures
from trainer.dataset.record import CROPS
from trainer.dataset.scan import PictureFacts

LONGEST = float(DataConfig.model_fields["max_aspect_ratio"].default)


def find(facts: Facts) -> list[Finding]:
    """Those of which the longest bucket loses more than a fifth."""
    found = []
    for picture in facts.scan.usable:
        ratio = max(picture.width, picture.height) / min(picture.width, picture.height)
        lost = 1 - LONGEST / ratio
        if lost > 0.2:
            message = f"is {picture.width}×{picture.height} px: {lost:.0%} of its length is cut off, from both ends."
            fix = _crop(picture, facts.measures.get(picture.name))
            found.append(Finding("shape", (picture.name,), message, Verdict.USABLE, fix=fix))
    return found


def _crop(picture: PictureFacts, measures: Measures | None) -> Fix | None:
    """A crop as long as the longest bucket, where most edges are; of several such places that nearest to the middle."""
    if measures is None:
        return None
    is_wide = picture.width > picture.height
    length, short = max(picture.width, picture.height), min(picture.width, picture.height)
    kept = round(short * LONGEST)
    edges = np.unpackbits(measures.edges).reshape(EDGES, EDGES).sum(0 if is_wide else 1)
    until = np.concatenate([[0], np.cumsum(edges, dtype=np.int64)])
    cells = max(1, round(EDGES * kept / length))
    inside = until[cells:] - until[:-cells]
    best = np.flatnonzero(inside == inside.max())
    place = best[np.abs(best - (EDGES - cells) / 2).argmin()]
    start = min(round(place / EDGES * length), length - kept)
    box = (start, 0, start + kept, short) if is_wide else (0, start, short, start + kept)
    title = f"Crop {picture.name} to its part with most detail"
    return Fix(title, {(CROPS, picture.name): list(picture.kept_part(box))})


CHECK = Check(
    "shape", "Shape", "What is much longer than the longest bucket loses its ends, whatever is on them.", find
)
