"""Where the subject of a picture may be: faces, or simply where there is most to see. Guesses, which the user accepts or not."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.errors import ConfigError, ResourceError

_WORK_SIDE = 96
_TRIMMED = 0.06
"""Share of the detail that may lie outside of the box, on each of its sides."""
_FACE_SIDE = 1024
_LEAST_FACE = 0.04
"""Of the shorter side: smaller ones are mostly mistaken."""


@dataclass(frozen=True)
class Subject:
    """A guess: left, top, right, bottom as shares of the picture from 0 to 1, and what was seen there, in words."""

    box: tuple[float, float, float, float]
    seen: str


Finder = Callable[[Image.Image], Subject | None]
"""Looks at an RGB picture; None where it sees no subject."""


def find_detail(image: Image.Image) -> Subject | None:
    """The part of a picture with most of its edges and of the colours that its border has not. It knows no things and no people."""
    work = image.convert("RGB")
    work.thumbnail((_WORK_SIDE, _WORK_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(work, dtype=np.float32)
    grey = pixels.mean(2)
    edges = np.zeros_like(grey)
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    edges[1:] += np.abs(np.diff(grey, axis=0))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    apart = np.abs(pixels - np.median(border, axis=0)).mean(2)
    detail = _above_ground(edges) + _above_ground(apart)
    if not detail.any():
        return None
    left, right = _trimmed(detail.sum(0))
    top, bottom = _trimmed(detail.sum(1))
    return Subject((left, top, right, bottom), "edges and colours")


def _above_ground(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What lies above the median, from 0 to 1."""
    above = np.clip(values - np.median(values), 0, None)
    return above / above.max() if above.max() > 0 else above


def _trimmed(line: NDArray[np.float32]) -> tuple[float, float]:
    """The shares of a line between which all but `_TRIMMED` on each side lies."""
    total = np.concatenate([[0], np.cumsum(line)]) / line.sum()
    places = np.arange(len(total)) / len(line)
    # The cumulative sum may stand still: the innermost of equal places.
    first = places[max(0, int(np.searchsorted(total, _TRIMMED, side="right")) - 1)]
    last = places[min(len(line), int(np.searchsorted(total, 1 - _TRIMMED, side="left")))]
    return float(first), float(last)


def find_faces(image: Image.Image) -> Subject | None:
    """All faces that OpenCV's Haar cascades see (from the front and from the side), as one box. Raises ResourceError: no OpenCV."""
    work = image.convert("L")
    work.thumbnail((_FACE_SIDE, _FACE_SIDE), Image.Resampling.BOX)
    grey = np.asarray(work)
    least = max(20, round(_LEAST_FACE * min(work.size)))
    found = [
        tuple(map(int, box))
        for cascade in _cascades()
        for box in cascade.detectMultiScale(grey, 1.1, 5, minSize=(least, least))
    ]
    faces = _apart(found)
    if not faces:
        return None
    left, top = min(x for x, _, _, _ in faces), min(y for _, y, _, _ in faces)
    right, bottom = max(x + w for x, _, w, _ in faces), max(y + h for _, y, _, h in faces)
    shares = left / work.width, top / work.height, right / work.width, bottom / work.height
    return Subject(shares, "1 face" if len(faces) == 1 else f"{len(faces)} faces")


def _apart(boxes: Sequence[Any]) -> list[tuple[int, int, int, int]]:
    """Boxes (x, y, width, height) without those whose middle lies in one before."""
    kept: list[tuple[int, int, int, int]] = []
    for x, y, w, h in boxes:
        middle_x, middle_y = x + w / 2, y + h / 2
        if not any(a <= middle_x <= a + c and b <= middle_y <= b + d for a, b, c, d in kept):
            kept.append((x, y, w, h))
    return kept


@cache
def _cascades() -> tuple[Any, ...]:
    require_faces()
    import cv2  # pyright: ignore[reportMissingImports]

    folder = cv2.data.haarcascades
    names = ("haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml")
    return tuple(cv2.CascadeClassifier(f"{folder}{name}") for name in names)


def require_faces() -> None:
    """Refuse where OpenCV is not installed. Raises ResourceError."""
    if importlib.util.find_spec("cv2") is None:
        raise ResourceError(
            "Looking for faces needs the library OpenCV, which is not installed.",
            fix="Install it with `python launch.py --extra faces`, or let it look for detail.",
        )


@dataclass(frozen=True)
class FinderKind:
    """A way to look for subjects."""

    title: str
    hint: str
    find: Finder
    require: Callable[[], None]


FINDERS: dict[str, FinderKind] = {
    "detail": FinderKind(
        "Detail (built in)",
        "where most edges and unusual colours are; it knows no people and no things.",
        find_detail,
        lambda: None,
    ),
    "faces": FinderKind(
        "Faces in photographs (OpenCV)",
        "from the front and the side; drawn faces are mostly missed: look for detail there.",
        find_faces,
        require_faces,
    ),
}
"""By name, the one first that is always there."""


def finder(name: str) -> Finder:
    """A finder by its name, ready to be used. Raises ConfigError: there is none of that name. ResourceError: it needs a library."""
    if name not in FINDERS:
        raise ConfigError(
            f"There is no way '{name}' to look for subjects.", fix=f"Choose one of: {', '.join(FINDERS)}."
        )
    FINDERS[name].require()
    return FINDERS[name].find
