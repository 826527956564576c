"""Lines and outlines that scenes are made of, as points; y points down."""

from __future__ import annotations

import math

Point = tuple[float, float]


def ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> tuple[Point, ...]:
    """An ellipse, or a part of it between two angles in degrees, as a polygon."""
    steps = max(8, int(36 * (end - start) / 360))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + (end - start < 360))]
    return tuple((cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles)


def box(x0: float, y0: float, x1: float, y1: float) -> tuple[Point, ...]:
    """A rectangle from its upper left and lower right corners."""
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def curve(points: list[Point], steps: int = 8) -> tuple[Point, ...]:
    """A smooth (Catmull-Rom) line through the points."""
    padded = [points[0], *points, points[-1]]
    out: list[Point] = []
    for p0, p1, p2, p3 in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for i in range(steps):
            t = i / steps
            out.append(
                tuple(
                    0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
                    for a, b, c, d in zip(p0, p1, p2, p3, strict=True)
                )
            )
    return (*out, points[-1])
