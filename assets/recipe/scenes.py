"""Scenes as vector shapes: what the base model is trained on, and what every bundled picture is drawn from.

A scene is a frozen ``SceneSpec``; ``shapes(spec)`` turns it into polygons, back to front, and the renderers in
``flat.py`` and ``styles.py`` paint these polygons in a style.  The same spec painted twice gives paired pictures,
so that a style can be measured against the truth.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass

from geometry import Point, box, curve, ellipse
from objects import PARTS

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
        Shape("object", fill, tuple((x + u * size, foot - v * size) for u, v in corners))
        for fill, corners in PARTS[name]()
    ]


def shapes(spec: SceneSpec) -> list[Shape]:
    """All polygons of the scene, back to front."""
    rng = random.Random(spec.seed)
    return [*_sky(spec, rng), *_far(spec, rng), *_ground(spec, rng), *_thing(spec, rng)]
