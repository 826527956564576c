"""Training pictures and captions, drawn once and kept as one tensor file in the work folder."""

from __future__ import annotations

import math
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from flat import render_flat
from PIL import Image, ImageDraw, ImageFilter
from scenes import SceneSpec, caption, shapes, specs
from torch import Tensor

SIZE = 64
PASTEL_SHARE = 0.08
PASTEL = "pastel style"


def is_pastel(index: int) -> bool:
    """Whether the scene of this number is drawn in the second drawn style."""
    return index % 100 < PASTEL_SHARE * 100


def captions_of(scene: SceneSpec, index: int, count: int = 4) -> list[str]:
    """Several phrasings of the same scene."""
    rng = random.Random(scene.seed ^ 0x5EED)
    style = PASTEL if is_pastel(index) else None
    return [caption(scene, None if i == 0 else rng, style) for i in range(count)]


def _draw(job: tuple[int, SceneSpec]) -> np.ndarray:
    index, scene = job
    return np.asarray(render_flat(scene, SIZE, is_pastel(index)))


def _tone(rng: random.Random, grey: bool) -> tuple[int, ...]:
    return (rng.randrange(256),) * 3 if grey or rng.random() < 0.3 else tuple(rng.randrange(256) for _ in range(3))


def _line(draw: ImageDraw.ImageDraw, rng: random.Random, size: int, paint: tuple[int, ...]) -> None:
    """One wavering stroke, or a closed ring of it."""
    x, y, turn, width = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, 6.3), rng.uniform(2, 9)
    bend = rng.choice((0.0, rng.gauss(0, 0.15)))
    for _ in range(rng.randint(10, 60)):
        turn += bend + rng.gauss(0, 0.12)
        nx, ny = x + 5 * math.cos(turn), y + 5 * math.sin(turn)
        width = min(14, max(2, width + rng.gauss(0, 0.7)))
        draw.line((x, y, nx, ny), fill=paint, width=round(width))
        x, y = nx, ny


def _figure(
    draw: ImageDraw.ImageDraw, rng: random.Random, size: int, fill: tuple[int, ...] | None, edge: tuple
) -> None:
    """A filled or empty shape with an outline."""
    width = rng.randint(2, 9)
    if rng.random() < 0.5:
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(6, 50)
        draw.ellipse((x - r, y - r, x + r, y + r * rng.uniform(0.2, 1)), fill=fill, outline=edge, width=width)
    else:
        x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(20, 90)
        points = [(x + rng.uniform(-r, r), y + rng.uniform(-r, r)) for _ in range(rng.randint(3, 6))]
        draw.polygon(points, fill=fill)
        draw.line([*points, points[0]], fill=edge, width=width, joint="curve")


def doodle(seed: int) -> np.ndarray:
    """Lines, blots and textures in any colours or in greys: they teach the autoencoder what is not in the scenes."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    size, grey = SIZE * 3, rng.random() < 0.4
    image = Image.new("RGB", (size, size), _tone(rng, grey))
    draw = ImageDraw.Draw(image)
    edge = _tone(rng, grey)
    for _ in range(rng.randint(2, 14)):
        if rng.random() < 0.3:
            edge = _tone(rng, grey)
        if rng.random() < 0.5:
            _line(draw, rng, size, edge)
        else:
            _figure(draw, rng, size, None if rng.random() < 0.3 else _tone(rng, grey), edge)
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 6)))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float32)
    if rng.random() < 0.5:
        cells = rng.choice((5, 9, 17))
        cloud = Image.fromarray(noise.uniform(0, 255, (cells, cells)).astype(np.uint8)).resize((SIZE, SIZE), 3)
        grain = noise.normal(0, rng.uniform(0, 8), (SIZE, SIZE, 1))
        pixels = pixels + grain + (np.asarray(cloud, np.float32)[..., None] - 128) * rng.uniform(0, 0.7)
    if grey and rng.random() < 0.6:  # greys on tinted paper
        paper, ink = noise.uniform(150, 256, 3), noise.uniform(0, 90, 3)
        share = pixels.clip(0, 255) / 255
        pixels = ink + (paper - ink) * share
    return pixels.clip(0, 255).astype(np.uint8)


def sketch(job: tuple[int, SceneSpec]) -> np.ndarray:
    """A scene as a drawing with lines and tones of any strength in two or three random colours."""
    index, scene = job
    rng, noise = random.Random(index), np.random.default_rng(index)
    scale = 4 * SIZE
    image = Image.new("L", (scale, scale), rng.randrange(200, 256))
    draw = ImageDraw.Draw(image)
    width, tones = rng.randint(3, 11), rng.random() < 0.7
    for shape in shapes(scene):
        points = [(x * scale, y * scale) for x, y in shape.points]
        dark = rng.randrange(0, 110)
        if shape.closed and shape.layer != "sky":
            draw.polygon(points, fill=rng.randrange(60, 256) if tones else 255)
            points = [*points, points[0]]
        if shape.layer != "sky" and rng.random() < 0.9:
            draw.line(points, fill=dark, width=max(2, width + rng.randint(-2, 2)), joint="curve")
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 4)))
    share = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float32)[..., None] / 255
    cells = rng.choice((5, 9, 17))
    cloud = Image.fromarray(noise.uniform(0, 255, (cells, cells)).astype(np.uint8)).resize((SIZE, SIZE), 3)
    share = share * (1 - rng.uniform(0, 0.5) * np.asarray(cloud, np.float32)[..., None] / 255)
    light, ink = noise.uniform(130, 256, 3), noise.uniform(0, 110, 3)
    if rng.random() < 0.5:
        light, ink = np.full(3, light[0]) + noise.uniform(-15, 15, 3), np.full(3, ink[0])
    if rng.random() < 0.3:
        light, ink = ink, light
    return (ink + (light - ink) * share).clip(0, 255).astype(np.uint8)


def load_sketches(work: Path, count: int) -> Tensor:
    """Drawings (uint8, N × 3 × 64 × 64); drawn on the first call."""
    path = work / f"sketches-{count}.pt"
    if not path.exists():
        with ProcessPoolExecutor(2) as pool:
            drawn = np.stack(list(pool.map(sketch, enumerate(specs(count, 23)), chunksize=64)))
        torch.save(torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return torch.load(path)


def load(work: Path, count: int, doodles: int, seed: int = 7) -> tuple[list[SceneSpec], Tensor, Tensor]:
    """Scenes, their pictures and the doodles (uint8, N × 3 × 64 × 64); drawn on the first call."""
    scenes = specs(count, seed)
    path = work / f"pictures-{count}-{doodles}-{seed}.pt"
    if not path.exists():
        with ProcessPoolExecutor(2) as pool:
            drawn = np.stack(list(pool.map(_draw, enumerate(scenes), chunksize=64)))
            loose = np.stack(list(pool.map(doodle, range(doodles), chunksize=64)))
        pair = tuple(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in (drawn, loose))
        torch.save(pair, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    pictures, loose = torch.load(path)
    return scenes, pictures, loose
