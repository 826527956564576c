"""The things that stand in a scene, each as polygons: ten that the base model knows, and one that it does not."""

from __future__ import annotations

import math
from collections.abc import Callable

from geometry import Point, ellipse

Polygon = tuple[str, tuple[Point, ...]]
"""Fill and corners, in an object's own frame: x from -0.5 to 0.5, y from 0 (foot) to 1 (top)."""


def _house() -> list[Polygon]:
    return [
        ("object", ((-0.36, 0), (0.36, 0), (0.36, 0.52), (-0.36, 0.52))),
        ("object_dark", ((-0.5, 0.5), (0.5, 0.5), (0.0, 0.98))),
        ("dark", ((-0.22, 0), (-0.02, 0), (-0.02, 0.34), (-0.22, 0.34))),
        ("lamp", ((0.1, 0.2), (0.28, 0.2), (0.28, 0.38), (0.1, 0.38))),
    ]


def _boat() -> list[Polygon]:
    return [
        ("dark", ((-0.03, 0.2), (0.03, 0.2), (0.03, 0.98), (-0.03, 0.98))),
        ("object", ((0.06, 0.3), (0.44, 0.3), (0.06, 0.96))),
        ("object", ((-0.06, 0.3), (-0.34, 0.3), (-0.06, 0.82))),
        ("object_dark", ((-0.5, 0.24), (0.5, 0.24), (0.34, 0), (-0.34, 0))),
    ]


def _tower() -> list[Polygon]:
    return [
        ("object", ((-0.2, 0), (0.2, 0), (0.2, 0.28), (-0.2, 0.28))),
        ("object", ((-0.15, 0.36), (0.15, 0.36), (0.15, 0.58), (-0.15, 0.58))),
        ("object", ((-0.1, 0.66), (0.1, 0.66), (0.1, 0.84), (-0.1, 0.84))),
        ("object_dark", ((-0.4, 0.27), (0.4, 0.27), (0.2, 0.4), (-0.2, 0.4))),
        ("object_dark", ((-0.32, 0.56), (0.32, 0.56), (0.15, 0.69), (-0.15, 0.69))),
        ("object_dark", ((-0.24, 0.83), (0.24, 0.83), (0.0, 1.08))),
        ("dark", ((-0.07, 0), (0.07, 0), (0.07, 0.16), (-0.07, 0.16))),
    ]


def _tree() -> list[Polygon]:
    return [
        ("wood", ((-0.08, 0), (0.08, 0), (0.06, 0.5), (-0.06, 0.5))),
        ("object_dark", ellipse(-0.24, 0.56, 0.24, 0.22)),
        ("object_dark", ellipse(0.24, 0.56, 0.24, 0.22)),
        ("object", ellipse(0, 0.74, 0.3, 0.28)),
    ]


def _fish() -> list[Polygon]:
    return [
        ("object_dark", ((0.2, 0.36), (0.52, 0.64), (0.52, 0.08))),
        ("object_dark", ((-0.12, 0.55), (0.14, 0.55), (0.08, 0.76))),
        ("object", ellipse(-0.1, 0.36, 0.4, 0.26)),
        ("lamp", ellipse(-0.3, 0.42, 0.075, 0.075)),
        ("dark", ellipse(-0.31, 0.42, 0.035, 0.035)),
    ]


def _car() -> list[Polygon]:
    return [
        ("object_dark", ((-0.28, 0.34), (0.3, 0.34), (0.18, 0.6), (-0.16, 0.6))),
        ("lamp", ((-0.18, 0.36), (-0.01, 0.36), (-0.01, 0.53), (-0.11, 0.53))),
        ("lamp", ((0.03, 0.36), (0.2, 0.36), (0.13, 0.53), (0.03, 0.53))),
        ("object", ((-0.52, 0.1), (0.52, 0.1), (0.52, 0.3), (0.38, 0.37), (-0.46, 0.37), (-0.52, 0.3))),
        ("dark", ellipse(-0.28, 0.1, 0.13, 0.13)),
        ("dark", ellipse(0.28, 0.1, 0.13, 0.13)),
    ]


def _balloon() -> list[Polygon]:
    return [
        ("object", ((-0.34, 0.6), (0.34, 0.6), (0.11, 0.3), (-0.11, 0.3))),
        ("object", ellipse(0, 0.72, 0.38, 0.36)),
        ("object_dark", ellipse(0, 0.72, 0.14, 0.355)),
        ("wood", ((-0.12, 0.06), (0.12, 0.06), (0.12, 0.23), (-0.12, 0.23))),
    ]


def _cat() -> list[Polygon]:
    return [
        ("object_dark", ((0.2, 0.04), (0.44, 0.06), (0.54, 0.24), (0.5, 0.48), (0.4, 0.46), (0.42, 0.26),
                             (0.2, 0.2))),
        ("object", ellipse(0, 0.26, 0.28, 0.28)),
        ("object_dark", ((-0.3, 0.7), (-0.02, 0.84), (-0.28, 1.06))),
        ("object_dark", ((0.3, 0.7), (0.02, 0.84), (0.28, 1.06))),
        ("object", ellipse(0, 0.66, 0.3, 0.24)),
        ("dark", ellipse(-0.12, 0.7, 0.05, 0.065)),
        ("dark", ellipse(0.12, 0.7, 0.05, 0.065)),
    ]  # fmt: skip


def _tent() -> list[Polygon]:
    return [
        ("object", ((-0.54, 0), (0.54, 0), (0, 0.76))),
        ("object_dark", ((-0.2, 0), (0.2, 0), (0, 0.76))),
        ("dark", ((-0.1, 0), (0.1, 0), (0, 0.42))),
    ]


def _flower() -> list[Polygon]:
    petals = [("object", ellipse(0.25 * math.cos(a), 0.7 + 0.25 * math.sin(a), 0.17, 0.17))
              for a in (math.radians(30 + 60 * i) for i in range(6))]  # fmt: skip
    return [
        ("leaf", ((-0.04, 0), (0.04, 0), (0.03, 0.6), (-0.03, 0.6))),
        ("leaf", ((0.0, 0.1), (0.3, 0.32), (0.3, 0.2))),
        ("leaf", ((0.0, 0.1), (-0.3, 0.32), (-0.3, 0.2))),
        *petals,
        ("lamp", ellipse(0, 0.7, 0.15, 0.15)),
    ]


def _zib() -> list[Polygon]:
    """The character: nothing of it is an object that the base model knows."""
    return [
        ("zib_metal", ((-0.04, 0.86), (0.04, 0.86), (0.04, 1.04), (-0.04, 1.04))),
        ("zib_red", ellipse(0, 1.08, 0.12, 0.11)),
        ("zib_metal", ((-0.22, 0), (-0.06, 0), (-0.06, 0.14), (-0.22, 0.14))),
        ("zib_metal", ((0.06, 0), (0.22, 0), (0.22, 0.14), (0.06, 0.14))),
        ("zib_metal", ((-0.48, 0.2), (-0.28, 0.34), (-0.28, 0.44), (-0.48, 0.3))),
        ("zib_metal", ((0.48, 0.5), (0.28, 0.34), (0.28, 0.44), (0.48, 0.6))),
        ("zib_body", ((-0.3, 0.1), (0.3, 0.1), (0.26, 0.48), (-0.26, 0.48))),
        ("zib_stripe", ((-0.29, 0.18), (0.29, 0.18), (0.275, 0.34), (-0.275, 0.34))),
        ("zib_body", ((-0.38, 0.48), (0.38, 0.48), (0.42, 0.56), (0.42, 0.82), (0.36, 0.9), (-0.36, 0.9),
                          (-0.42, 0.82), (-0.42, 0.56))),
        ("zib_white", ellipse(0, 0.69, 0.24, 0.19)),
        ("zib_eye", ellipse(0, 0.69, 0.12, 0.11)),
    ]  # fmt: skip


PARTS: dict[str, Callable[[], list[Polygon]]] = {
    "house": _house,
    "boat": _boat,
    "tower": _tower,
    "tree": _tree,
    "fish": _fish,
    "car": _car,
    "balloon": _balloon,
    "cat": _cat,
    "tent": _tent,
    "flower": _flower,
    "zib": _zib,
}
