"""Scenes as vector shapes: what the base model is trained on, and what every bundled picture is drawn from.

A scene is a frozen ``SceneSpec``; ``shapes(spec)`` turns it into polygons, back to front, and the renderers in
``flat.py`` and ``styles.py`` paint these polygons in a style.  The same spec painted twice gives paired pictures,
so that a style can be measured against the truth.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

TIMES = ("day", "sunset", "night")
GROUNDS = ("lake", "meadow", "desert", "snow")
FARS = ("mountains", "hills", "forest")
OBJECTS = ("house", "boat", "tower", "tree", "fish", "car", "balloon", "cat", "tent", "flower")
COLOURS = ("red", "blue", "yellow", "green", "purple", "white", "pink")
PLACES = ("left", "middle", "right")
FACTORS = {
    "time": TIMES, "ground": GROUNDS, "far": FARS, "object": OBJECTS, "colour": COLOURS, "place": PLACES,
}  # fmt: skip
PLACE_X = {"left": 0.23, "middle": 0.5, "right": 0.77}
HORIZON = 0.53

Point = tuple[float, float]
Local = Callable[[float, float], Point]


@dataclass(frozen=True)
class SceneSpec:
    """One scene.  ``seed`` decides the jitter, ``aspect`` is width / height, ``character`` replaces the object."""

    time: str
    ground: str
    far: str
    object: str
    colour: str
    place: str
    seed: int = 0
    aspect: float = 1.0
    character: bool = False


@dataclass(frozen=True)
class Shape:
    """A polygon (or, if not closed, a line) in units of the picture's height; y points down.

    ``layer`` is one of sky, sun, far, ground, mark, object; ``fill`` names a colour, which the renderer chooses.
    """

    layer: str
    fill: str
    points: tuple[Point, ...]
    closed: bool = True
    width: float = 0.0


def held_out(spec: SceneSpec) -> bool:
    """Whether this object × colour × ground is kept out of training (about a tenth of the combinations)."""
    digest = hashlib.sha256(f"{spec.object}/{spec.colour}/{spec.ground}".encode()).digest()
    return digest[0] % 10 == 0


def random_spec(rng: random.Random, aspect: float = 1.0) -> SceneSpec:
    """A scene with every factor drawn by chance."""
    values = {name: rng.choice(choices) for name, choices in FACTORS.items()}
    return SceneSpec(**values, seed=rng.getrandbits(32), aspect=aspect)


def specs(count: int, seed: int, want_held_out: bool | None = False) -> list[SceneSpec]:
    """``count`` random scenes; held-out combinations are left out (False), the only ones (True) or mixed (None)."""
    rng = random.Random(seed)
    stream = (random_spec(rng) for _ in itertools.count())
    return list(itertools.islice((s for s in stream if want_held_out is None or held_out(s) == want_held_out), count))


# --- captions -------------------------------------------------------------------------------------------------------

_TIME = {"day": "by day", "sunset": "at sunset", "night": "at night"}
_GROUND = {"lake": "on a lake", "meadow": "in a meadow", "desert": "in the desert", "snow": "in the snow"}
_FAR = {"mountains": "mountains behind", "hills": "hills behind", "forest": "a forest behind"}
PLACE_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def caption(
    spec: SceneSpec, rng: random.Random | None = None, style: str | None = None, subject: str | None = None
) -> str:
    """The scene in words.  With ``rng``, parts are now and then shuffled or dropped, as people's prompts are."""
    what = subject or f"a {spec.colour} {spec.object}"
    rest = [_GROUND[spec.ground], _TIME[spec.time], _FAR[spec.far], PLACE_PHRASES[spec.place]]
    if rng is None:
        parts = [what, rest[3], *rest[:3]]
    else:
        if subject is None and rng.random() < 0.04:
            what = f"a {spec.object}"
        rest = [part for part in rest if rng.random() > 0.1]
        rng.shuffle(rest)
        parts = [what, *rest]
        if rng.random() < 0.2:
            rng.shuffle(parts)
    if style:
        parts.insert(0 if rng is None or rng.random() < 0.7 else len(parts), style)
    return ", ".join(parts)


# --- geometry -------------------------------------------------------------------------------------------------------


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


def _sky(spec: SceneSpec, rng: random.Random) -> list[Shape]:
    side = {"left": 1, "right": -1}.get(spec.place) or rng.choice((-1, 1))
    x = spec.aspect / 2 + side * (0.27 + rng.uniform(-0.05, 0.05)) * spec.aspect
    y = 0.15 + rng.uniform(-0.03, 0.03)
    return [
        Shape("sky", "sky", box(0, 0, spec.aspect, HORIZON + 0.1)),
        Shape("sun", "sun", ellipse(x, y, 0.075, 0.075)),
    ]


def _far(spec: SceneSpec, rng: random.Random) -> list[Shape]:
    w, shapes = spec.aspect, []
    if spec.far == "mountains":
        count = max(3, round(3 * w))
        peaks = [((i + 0.5) / count * w + rng.uniform(-0.06, 0.06), 0.26 + rng.uniform(-0.04, 0.05))
                 for i in range(count)]  # fmt: skip
        rng.shuffle(peaks)
        for i, (x, y) in enumerate(peaks):
            half = 0.27 + rng.uniform(-0.03, 0.03)
            slope = (HORIZON + 0.02 - y) / half
            shapes.append(Shape("far", "far" if i % 2 else "far_dark",
                                ((x - half, HORIZON + 0.02), (x, y), (x + half, HORIZON + 0.02))))  # fmt: skip
            d = 0.085
            shapes.append(Shape("far", "far_cap", ((x - d / slope, y + d), (x, y), (x + d / slope, y + d),
                                                   (x + 0.02, y + d * 0.75), (x - 0.02, y + d * 1.1))))  # fmt: skip
    elif spec.far == "hills":
        for i in range(max(3, round(2.5 * w))):
            x = (i + 0.3) / 2.5 + rng.uniform(-0.08, 0.08)
            height = 0.13 + rng.uniform(-0.02, 0.03)
            shapes.append(Shape("far", "far" if i % 2 else "far_dark",
                                ellipse(x, HORIZON + 0.02, 0.33, height + 0.02, 180, 360)))  # fmt: skip
    else:
        count = round(10 * w)
        for i in range(count + 1):
            x, y = i / count * w + rng.uniform(-0.015, 0.015), 0.34 + rng.uniform(-0.04, 0.04)
            shapes.append(Shape("far", "far" if i % 2 else "far_dark",
                                ((x - 0.075, HORIZON + 0.02), (x, y), (x + 0.075, HORIZON + 0.02))))  # fmt: skip
    return shapes


def _ground(spec: SceneSpec, rng: random.Random) -> list[Shape]:
    w = spec.aspect
    shapes = [Shape("ground", "ground", box(0, HORIZON, w, 1))]
    for i in range(round(5 * w)):
        x, y = (i + 0.5 + rng.uniform(-0.3, 0.3)) / 5, HORIZON + 0.08 + (i * 2 % 5) * 0.085 + rng.uniform(-0.02, 0.02)
        if spec.ground == "lake":
            shapes.append(Shape("mark", "mark", ((x - 0.1, y), (x + 0.1, y)), False, 0.016))
        elif spec.ground == "meadow":
            for dx in (-0.025, 0, 0.025):
                shapes.append(Shape("mark", "mark", ((x + dx, y + 0.02), (x + dx * 1.7, y - 0.03)), False, 0.012))
        elif spec.ground == "desert":
            shapes.append(Shape("mark", "mark", curve([(x - 0.11, y + 0.02), (x, y - 0.015), (x + 0.11, y + 0.02)]),
                                False, 0.014))  # fmt: skip
        elif i % 2:
            shapes.append(Shape("mark", "mark", ellipse(x, y + 0.02, 0.13, 0.03)))
    return shapes


def _parts(name: str, at: Local) -> list[tuple[str, tuple[Point, ...]]]:
    """The polygons of an object in its own frame: x from -0.5 to 0.5, y from 0 (foot) to 1 (top)."""

    def poly(*points: Point) -> tuple[Point, ...]:
        return tuple(at(x, y) for x, y in points)

    def oval(cx: float, cy: float, rx: float, ry: float) -> tuple[Point, ...]:
        return poly(*ellipse(cx, cy, rx, ry))

    if name == "house":
        return [
            ("object", poly((-0.36, 0), (0.36, 0), (0.36, 0.52), (-0.36, 0.52))),
            ("object_dark", poly((-0.5, 0.5), (0.5, 0.5), (0.0, 0.98))),
            ("dark", poly((-0.22, 0), (-0.02, 0), (-0.02, 0.34), (-0.22, 0.34))),
            ("lamp", poly((0.1, 0.2), (0.28, 0.2), (0.28, 0.38), (0.1, 0.38))),
        ]
    if name == "boat":
        return [
            ("dark", poly((-0.03, 0.2), (0.03, 0.2), (0.03, 0.98), (-0.03, 0.98))),
            ("object", poly((0.06, 0.3), (0.44, 0.3), (0.06, 0.96))),
            ("object", poly((-0.06, 0.3), (-0.34, 0.3), (-0.06, 0.82))),
            ("object_dark", poly((-0.5, 0.24), (0.5, 0.24), (0.34, 0), (-0.34, 0))),
        ]
    if name == "tower":
        return [
            ("object", poly((-0.2, 0), (0.2, 0), (0.2, 0.28), (-0.2, 0.28))),
            ("object", poly((-0.15, 0.36), (0.15, 0.36), (0.15, 0.58), (-0.15, 0.58))),
            ("object", poly((-0.1, 0.66), (0.1, 0.66), (0.1, 0.84), (-0.1, 0.84))),
            ("object_dark", poly((-0.4, 0.27), (0.4, 0.27), (0.2, 0.4), (-0.2, 0.4))),
            ("object_dark", poly((-0.32, 0.56), (0.32, 0.56), (0.15, 0.69), (-0.15, 0.69))),
            ("object_dark", poly((-0.24, 0.83), (0.24, 0.83), (0.0, 1.08))),
            ("dark", poly((-0.07, 0), (0.07, 0), (0.07, 0.16), (-0.07, 0.16))),
        ]
    if name == "tree":
        return [
            ("wood", poly((-0.08, 0), (0.08, 0), (0.06, 0.5), (-0.06, 0.5))),
            ("object_dark", oval(-0.24, 0.56, 0.24, 0.22)),
            ("object_dark", oval(0.24, 0.56, 0.24, 0.22)),
            ("object", oval(0, 0.74, 0.3, 0.28)),
        ]
    if name == "fish":
        return [
            ("object_dark", poly((0.2, 0.36), (0.52, 0.64), (0.52, 0.08))),
            ("object_dark", poly((-0.12, 0.55), (0.14, 0.55), (0.08, 0.76))),
            ("object", oval(-0.1, 0.36, 0.4, 0.26)),
            ("lamp", oval(-0.3, 0.42, 0.075, 0.075)),
            ("dark", oval(-0.31, 0.42, 0.035, 0.035)),
        ]
    if name == "car":
        return [
            ("object_dark", poly((-0.28, 0.34), (0.3, 0.34), (0.18, 0.6), (-0.16, 0.6))),
            ("lamp", poly((-0.18, 0.36), (-0.01, 0.36), (-0.01, 0.53), (-0.11, 0.53))),
            ("lamp", poly((0.03, 0.36), (0.2, 0.36), (0.13, 0.53), (0.03, 0.53))),
            ("object", poly((-0.52, 0.1), (0.52, 0.1), (0.52, 0.3), (0.38, 0.37), (-0.46, 0.37), (-0.52, 0.3))),
            ("dark", oval(-0.28, 0.1, 0.13, 0.13)),
            ("dark", oval(0.28, 0.1, 0.13, 0.13)),
        ]
    if name == "balloon":
        return [
            ("object", poly((-0.34, 0.6), (0.34, 0.6), (0.11, 0.3), (-0.11, 0.3))),
            ("object", oval(0, 0.72, 0.38, 0.36)),
            ("object_dark", oval(0, 0.72, 0.14, 0.355)),
            ("wood", poly((-0.12, 0.06), (0.12, 0.06), (0.12, 0.23), (-0.12, 0.23))),
        ]
    if name == "cat":
        return [
            ("object_dark", poly((0.2, 0.04), (0.44, 0.06), (0.54, 0.24), (0.5, 0.48), (0.4, 0.46), (0.42, 0.26),
                                 (0.2, 0.2))),
            ("object", oval(0, 0.26, 0.28, 0.28)),
            ("object_dark", poly((-0.3, 0.7), (-0.02, 0.84), (-0.28, 1.06))),
            ("object_dark", poly((0.3, 0.7), (0.02, 0.84), (0.28, 1.06))),
            ("object", oval(0, 0.66, 0.3, 0.24)),
            ("dark", oval(-0.12, 0.7, 0.05, 0.065)),
            ("dark", oval(0.12, 0.7, 0.05, 0.065)),
        ]  # fmt: skip
    if name == "tent":
        return [
            ("object", poly((-0.54, 0), (0.54, 0), (0, 0.76))),
            ("object_dark", poly((-0.2, 0), (0.2, 0), (0, 0.76))),
            ("dark", poly((-0.1, 0), (0.1, 0), (0, 0.42))),
        ]
    if name == "flower":
        petals = [("object", oval(0.25 * math.cos(a), 0.7 + 0.25 * math.sin(a), 0.17, 0.17))
                  for a in (math.radians(30 + 60 * i) for i in range(6))]  # fmt: skip
        return [
            ("leaf", poly((-0.04, 0), (0.04, 0), (0.03, 0.6), (-0.03, 0.6))),
            ("leaf", poly((0.0, 0.1), (0.3, 0.32), (0.3, 0.2))),
            ("leaf", poly((0.0, 0.1), (-0.3, 0.32), (-0.3, 0.2))),
            *petals,
            ("lamp", oval(0, 0.7, 0.15, 0.15)),
        ]
    if name == "zib":  # the character: nothing of it is an object that the base model knows
        return [
            ("zib_metal", poly((-0.04, 0.86), (0.04, 0.86), (0.04, 1.04), (-0.04, 1.04))),
            ("zib_red", oval(0, 1.08, 0.12, 0.11)),
            ("zib_metal", poly((-0.22, 0), (-0.06, 0), (-0.06, 0.14), (-0.22, 0.14))),
            ("zib_metal", poly((0.06, 0), (0.22, 0), (0.22, 0.14), (0.06, 0.14))),
            ("zib_metal", poly((-0.48, 0.2), (-0.28, 0.34), (-0.28, 0.44), (-0.48, 0.3))),
            ("zib_metal", poly((0.48, 0.5), (0.28, 0.34), (0.28, 0.44), (0.48, 0.6))),
            ("zib_body", poly((-0.3, 0.1), (0.3, 0.1), (0.26, 0.48), (-0.26, 0.48))),
            ("zib_stripe", poly((-0.29, 0.18), (0.29, 0.18), (0.275, 0.34), (-0.275, 0.34))),
            ("zib_body", poly((-0.38, 0.48), (0.38, 0.48), (0.42, 0.56), (0.42, 0.82), (0.36, 0.9), (-0.36, 0.9),
                              (-0.42, 0.82), (-0.42, 0.56))),
            ("zib_white", oval(0, 0.69, 0.24, 0.19)),
            ("zib_eye", oval(0, 0.69, 0.12, 0.11)),
        ]  # fmt: skip
    raise ValueError(f"no such object: {name}")


def _thing(spec: SceneSpec, rng: random.Random) -> list[Shape]:
    size = 0.44 * rng.uniform(0.94, 1.06)
    x = (PLACE_X[spec.place] + rng.uniform(-0.03, 0.03)) * spec.aspect
    foot = 0.88 + rng.uniform(-0.03, 0.02)
    if spec.object == "balloon" and not spec.character:
        foot, size = foot - 0.16, size * 1.1
    if spec.character:
        foot, size = foot + 0.04, size * 1.25
    name = "zib" if spec.character else spec.object
    return [
        Shape("object", fill, points) for fill, points in _parts(name, lambda u, v: (x + u * size, foot - v * size))
    ]


def shapes(spec: SceneSpec) -> list[Shape]:
    """All polygons of the scene, back to front."""
    rng = random.Random(spec.seed)
    return [*_sky(spec, rng), *_far(spec, rng), *_ground(spec, rng), *_thing(spec, rng)]
