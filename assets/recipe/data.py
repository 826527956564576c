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
from scenes import SceneSpec, caption, specs
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


def doodle(seed: int) -> np.ndarray:
    """Lines, blots and textures in any colours: they teach the autoencoder what is not in the scenes."""
    rng = random.Random(seed)
    size = SIZE * 3

    def colour() -> tuple[int, ...]:
        if rng.random() < 0.4:
            return (rng.randrange(256),) * 3
        return tuple(rng.randrange(256) for _ in range(3))

    image = Image.new("RGB", (size, size), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 14)):
        x, y, turn, paint = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(0, 6.3), colour()
        kind = rng.random()
        if kind < 0.6:
            width = rng.uniform(2, 9)
            for _ in range(rng.randint(10, 60)):
                turn += rng.gauss(0, 0.25)
                nx, ny = x + 5 * math.cos(turn), y + 5 * math.sin(turn)
                width = min(12, max(1.5, width + rng.gauss(0, 0.7)))
                draw.line((x, y, nx, ny), fill=paint, width=round(width))
                x, y = nx, ny
        elif kind < 0.8:
            r = rng.uniform(5, 60)
            draw.ellipse((x - r, y - r, x + r, y + r * rng.uniform(0.2, 1)), fill=paint, outline=colour(), width=3)
        else:
            draw.polygon([(rng.uniform(0, size), rng.uniform(0, size)) for _ in range(rng.randint(3, 6))], fill=paint)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 6)))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX)).astype(np.float32)
    if rng.random() < 0.5:
        noise = np.random.default_rng(seed)
        grain = noise.normal(0, rng.uniform(2, 14), (SIZE, SIZE, 1))
        cloud = Image.fromarray(noise.uniform(0, 255, (9, 9)).astype(np.uint8)).resize((SIZE, SIZE), 3)
        pixels = pixels + grain + (np.asarray(cloud, np.float32)[..., None] - 128) * rng.uniform(0, 0.5)
    return pixels.clip(0, 255).astype(np.uint8)


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
