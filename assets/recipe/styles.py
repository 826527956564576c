"""Styles that the base model has never seen, computed from the same shapes: ink wash and blueprint."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from flat import PAINT
from geometry import Point, box
from PIL import Image, ImageDraw, ImageFilter
from scenes import HORIZON, SceneSpec, Shape, shapes

Array = np.ndarray
WORK = 256  # both styles are painted at this height and then reduced


def _cloud(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise from 0 to 1."""
    small = rng.uniform(0, 255, (cells + 1, max(2, round(cells * width / height)) + 1)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _mask(points: tuple[Point, ...], height: int, width: int) -> Array:
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(x * height, y * height) for x, y in points], fill=255)
    return np.asarray(image, np.float32) / 255


def _blur(layer: Array, radius: float) -> Array:
    image = Image.fromarray((layer.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _resample(points: list[Point], step: float) -> Array:
    line = np.asarray(points, np.float32)
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.linspace(0, lengths[-1], max(4, int(lengths[-1] / step)))
    return np.stack([np.interp(at, lengths, line[:, i]) for i in (0, 1)], axis=1)


def _corners(points: tuple[Point, ...], closed: bool) -> list[list[Point]]:
    """A polygon as the strokes in which a hand would draw it: a new one at each sharp corner."""
    ring = [*points, points[0]] if closed else list(points)
    strokes, current = [], [ring[0]]
    for i in range(1, len(ring)):
        current.append(ring[i])
        if i + 1 < len(ring):
            a, b = np.subtract(ring[i], ring[i - 1]), np.subtract(ring[i + 1], ring[i])
            if float(a @ b) < 0.6 * math.hypot(*a) * math.hypot(*b):
                strokes.append(current)
                current = [ring[i]]
    return [*strokes, current]


class InkPainting:
    """Ink on paper: washes with dark rims, brush strokes that swell, run dry and bleed, and a red seal."""

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec
        self.rng = np.random.default_rng(spec.seed)
        self.height, self.width = WORK, round(WORK * spec.aspect)
        self.ink = np.zeros((self.height, self.width), np.float32)
        self.strokes = Image.new("L", (self.width, self.height))
        self.warp = [(_cloud(self.rng, self.height, self.width, 14) - 0.5) * 16 for _ in range(2)]

    def cloud(self, cells: int) -> Array:
        return _cloud(self.rng, self.height, self.width, cells)

    def wash(self, mask: Array, density: float | Array, soft: float = 1.5) -> None:
        """A wash: its border wavers, its rim is darker, and it pools."""
        ys, xs = np.mgrid[0 : self.height, 0 : self.width]
        ys = np.clip(ys + self.warp[0] * 0.35, 0, self.height - 1).astype(int)
        xs = np.clip(xs + self.warp[1] * 0.35, 0, self.width - 1).astype(int)
        body = _blur(mask[ys, xs], soft)
        rim = body * (1 - _blur(body, 5))
        self.ink += density * (body * (0.6 + 0.6 * self.cloud(9)) + 0.6 * rim)

    def erase(self, mask: Array, left: float = 0.12) -> None:
        self.ink *= 1 - (1 - left) * _blur(mask, 1)

    def stroke(self, points: list[Point], weight: float, dark: float = 1.0, dryness: float = 0.5) -> None:
        """One brush stroke of several bristles, each of which may run out of ink."""
        line = _resample([(x * self.height, y * self.height) for x, y in points], 1.5)
        n = len(line)
        t = np.linspace(0, 1, n)
        waver = np.interp(t, np.linspace(0, 1, 5), self.rng.normal(0, 0.9, 5))
        swell = np.interp(t, np.linspace(0, 1, 5), self.rng.uniform(0.6, 1.35, 5))
        pressure = weight * swell * (0.45 + 0.75 * np.sin(np.pi * np.clip(t * 0.85 + 0.12, 0, 1)) ** 0.7)
        across = np.gradient(line, axis=0)[:, ::-1] * (1, -1)
        across = across / (np.linalg.norm(across, axis=1, keepdims=True) + 1e-6)
        line = line + across * waver[:, None]
        draw = ImageDraw.Draw(self.strokes)
        for offset in np.linspace(-0.42, 0.42, 5):
            ends = 1 - dryness * self.rng.uniform(0, 0.55) * abs(offset) * 2.4
            gaps = np.interp(t, np.linspace(0, 1, 8), self.rng.uniform(0, 1, 8)) < dryness * t * 0.75
            path = line + across * (offset * pressure)[:, None]
            for i in range(n - 1):
                if t[i] < ends and not (gaps[i] and abs(offset) > 0.1):
                    shade = round(255 * dark * self.rng.uniform(0.85, 1.0))
                    draw.line((*path[i], *path[i + 1]), fill=shade, width=max(1, round(pressure[i] * 0.36)))

    def outline(self, shape: Shape, weight: float, dark: float = 1.0, dryness: float = 0.45) -> None:
        for points in _corners(shape.points, shape.closed):
            self.stroke(points, weight, dark, dryness)

    def seal(self, image: Array) -> None:
        """The painter's red seal, in the lower corner that the object leaves free."""
        side = round(self.height * 0.105)
        right = self.spec.place == "left" or (self.spec.place == "middle" and self.spec.seed % 2 == 0)
        x = self.width - side - round(0.05 * self.height) if right else round(0.05 * self.height)
        y = self.height - side - round(0.05 * self.height)
        stamp = Image.new("L", (side, side), 255)
        draw = ImageDraw.Draw(stamp)
        cell = side / 9
        for _ in range(5):
            i, j = self.rng.integers(1, 7, 2)
            end = (i + 2, j) if self.rng.random() < 0.5 else (i, j + 2)
            draw.line((i * cell + cell, j * cell + cell, end[0] * cell, end[1] * cell), fill=40, width=round(cell))
        alpha = np.asarray(stamp, np.float32)[..., None] / 255 * self.rng.uniform(0.8, 1, (side, side, 1))
        patch = image[y : y + side, x : x + side]
        patch[:] = patch * (1 - alpha) + np.array((186, 36, 32)) * alpha

    def paint(self) -> Image.Image:
        spec, height, width = self.spec, self.height, self.width
        down = np.linspace(0, 1, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
        sky = {"day": 0.1 * (1 - down * 2), "sunset": 0.12 + 0.3 * down, "night": 0.62 - 0.3 * down}[spec.time]
        sky_mask = _mask(box(0, 0, spec.aspect, HORIZON + 0.03), height, width)
        self.wash(sky_mask, np.clip(sky, 0, 1) * (0.55 + 0.7 * self.cloud(5)), soft=5)
        ground = {"lake": 0.2, "meadow": 0.13, "desert": 0.05, "snow": 0.0}[spec.ground]
        night = 0.12 if spec.time == "night" else 0.0
        self.wash(1 - sky_mask, (ground + night) * (0.4 + 0.9 * self.cloud(6)), soft=5)
        for shape in shapes(spec):
            getattr(self, f"_{shape.layer}", lambda _: None)(shape)
        return self._develop()

    def _sun(self, shape: Shape) -> None:
        self.erase(_mask(shape.points, self.height, self.width), 0.05)
        if self.spec.time == "sunset":
            self.wash(_mask(shape.points, self.height, self.width), 0.5)
        self.outline(shape, 4.5, 0.7, 0.6)

    def _far(self, shape: Shape) -> None:
        if shape.fill == "far_cap":
            return
        mask = _mask(shape.points, self.height, self.width)
        top = min(y for _, y in shape.points)
        fade = np.clip((HORIZON - np.linspace(0, 1, self.height)) / (HORIZON - top), 0, 1)[:, None]
        self.erase(mask, 0.35)
        if self.spec.far == "forest":
            self.wash(mask, 0.75 + 0.2 * fade.astype(np.float32), soft=1.2)
        else:
            self.wash(mask, (0.75 if self.spec.far == "mountains" else 0.42) * fade.astype(np.float32) ** 1.5, soft=2)
            ridge = [p for p in shape.points if p[1] < HORIZON]
            if len(ridge) > 2:
                self.stroke(ridge, 6, 0.8, 0.8)
            else:
                left, peak, right = shape.points
                self.stroke([peak, left], 7.5, 0.9, 0.85)
                self.stroke([peak, right], 5.5, 0.75, 0.85)

    def _mark(self, shape: Shape) -> None:
        if shape.closed:
            half = len(shape.points) // 2
            self.stroke(list(shape.points[:half]), 3.5, 0.4, 0.8)
        else:
            self.stroke(list(shape.points), 4.5, 0.6, 0.8)

    def _object(self, shape: Shape) -> None:
        red, green, blue = PAINT[self.spec.colour]
        tone = 1 - (0.3 * red + 0.59 * green + 0.11 * blue) / 255
        mask = _mask(shape.points, self.height, self.width)
        self.erase(mask, 0.1)
        strokes = np.asarray(self.strokes, np.float32) * (1 - _blur(mask, 0.6))
        self.strokes = Image.fromarray(strokes.astype(np.uint8))
        density = {"object": 0.05 + 0.6 * tone, "object_dark": 0.2 + 0.7 * tone, "dark": 1.3, "wood": 0.6, "leaf": 0.5,
                   "lamp": 0.0}.get(shape.fill, 0.35)  # fmt: skip
        self.wash(mask, density, soft=1.0)
        self.outline(shape, 7.0)

    def _develop(self) -> Image.Image:
        lines = np.asarray(self.strokes, np.float32) / 255
        wet = np.clip(self.cloud(7) * 2.2 - 0.9, 0, 1)
        bled = _blur(lines, 4) * wet * 0.55 + _blur(lines, 0.7) * 1.05
        grain = (self.cloud(22) - 0.5) * 0.22
        density = np.clip(1 - np.exp(-1.5 * self.ink), 0, 0.88) * (1 + grain)
        density = np.maximum(density, np.clip(bled, 0, 1) * 0.95) + 0.15 * np.minimum(density, bled)
        density = np.clip(density, 0, 1)[..., None]
        fibre = (self.cloud(24) - 0.5) * 5 + (self.cloud(4) - 0.5) * 14
        paper = np.array((243, 235, 217), np.float32) + fibre[..., None]
        image = paper * (1 - density) + np.array((30, 28, 32), np.float32) * density
        self.seal(image)
        return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def render_ink(spec: SceneSpec, height: int = 64) -> Image.Image:
    """The scene as an ink wash painting."""
    painting = InkPainting(spec).paint().filter(ImageFilter.GaussianBlur(2.5))  # ink soaks into soft paper
    return painting.resize((round(height * spec.aspect), height), Image.Resampling.LANCZOS)


def render_blueprint(spec: SceneSpec, height: int = 64) -> Image.Image:
    """The scene as a blueprint: white lines on gridded blue paper."""
    rng = np.random.default_rng(spec.seed)
    scale, width = WORK * 2, round(WORK * 2 * spec.aspect)
    tone = (_cloud(rng, scale, width, 3)[..., None] - 0.5) * 16
    paper = (np.array((26, 74, 152), np.float32) + tone).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(paper)
    draw = ImageDraw.Draw(image)
    for i in range(1, round(8 * spec.aspect) + 8):
        at = i * scale // 8
        draw.line((at, 0, at, scale), fill=(46, 94, 172), width=6)
        draw.line((0, at, width, at), fill=(46, 94, 172), width=6)
    white = (226, 238, 252)
    for shape in shapes(spec):
        points = [(x * scale, y * scale) for x, y in shape.points]
        if shape.layer == "mark":
            draw.line([*points, points[0]] if shape.closed else points, fill=(130, 168, 222), width=12)
        elif shape.layer == "object":
            fill = {"object": (38, 92, 174), "object_dark": (20, 58, 126), "dark": (14, 40, 96)}.get(shape.fill)
            draw.polygon(points, fill=fill or (60, 116, 196))
            draw.line([*points, points[0]], fill=white, width=18, joint="curve")
        elif shape.layer in ("far", "sun"):
            if shape.fill == "far_cap":
                continue
            draw.polygon(points, fill=(24, 68, 142))
            draw.line([*points, points[0]], fill=(160, 192, 236), width=13, joint="curve")
            if shape.layer == "sun":
                _cross(draw, points, white)
        elif shape.layer == "ground":
            draw.rectangle((*points[0], *points[2]), fill=None, outline=(160, 192, 236), width=9)
    image = image.filter(ImageFilter.GaussianBlur(5))
    return image.resize((round(height * spec.aspect), height), Image.Resampling.LANCZOS)


def _cross(draw: ImageDraw.ImageDraw, ring: list[Point], colour: tuple[int, int, int]) -> None:
    xs, ys = zip(*ring, strict=True)
    cx, cy, r = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, (max(xs) - min(xs)) * 0.75
    draw.line((cx - r, cy, cx + r, cy), fill=colour, width=8)
    draw.line((cx, cy - r, cx, cy + r), fill=colour, width=8)


RENDERERS: dict[str, Callable[[SceneSpec, int], Image.Image]] = {
    "ink wash style": render_ink,
    "blueprint style": render_blueprint,
}
