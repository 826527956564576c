"""Pictures that are unlike the rest of the set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.dataset.doctor.findings import Check, Facts, Finding, Verdict, leave_out
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.spectrum import finest

_NEIGHBOURS = 3
_FEWEST = 12
_FAR = 4.5


def find(facts: Facts) -> list[Finding]:
    """Those much farther from their nearest neighbours than is usual in the set. A guess, which no verdict is made of."""
    names = [picture.name for picture, _ in facts.measured]
    if len(names) < _FEWEST:
        return []
    far = neighbour_distances(features([measures for _, measures in facts.measured]))
    usual = np.median(far)
    spread = max(1.4826 * float(np.median(np.abs(far - usual))), 0.1 * float(usual), 1e-6)
    message = "is unlike the others in its colours and structure. If it belongs to the set, keep it."
    return [
        Finding("outliers", (name,), message, Verdict.GOOD, fix=leave_out(name))
        for name, distance in zip(names, far, strict=True)
        if (distance - usual) / spread > _FAR
    ]


def features(measures: Sequence[Measures]) -> NDArray[np.float32]:
    """What a picture looks like from afar, `(pictures, 66)`: colours, detail and how many edges there are."""
    colours = np.sqrt(np.stack([each.colours for each in measures]).astype(np.float32) / 255)
    detail = np.array([[finest(each.spectrum)] for each in measures], np.float32)
    edges = np.array([[np.unpackbits(each.edges).mean()] for each in measures], np.float32)
    return np.concatenate([colours, detail, edges], axis=1)


def neighbour_distances(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean distance of each row from its nearest rows, a few hundred rows at a time."""
    squares = (values**2).sum(1)
    found = []
    for start in range(0, len(values), 256):
        part = values[start : start + 256]
        distance = np.maximum(squares[None] + (part**2).sum(1)[:, None] - 2 * part @ values.T, 0)
        nearest = np.sort(np.partition(distance, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1], axis=1)[:, 1:]
        found.append(np.sqrt(nearest).mean(1))
    return np.concatenate(found)


CHECK = Check(
    "outliers",
    "Unlike the rest",
    "A picture of another kind pulls the LoRA away from what the others teach.",
    find,
)
