"""A machine judge: a small classifier of drawn scenes, one answer per factor, and one for the character.

It is trained on renderings in all styles (combinations kept out of the base model's training included), half of them
after a trip through the autoencoder, blurred or noisy, so that generated pictures do not look foreign to it.
"""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from flat import render_flat
from scenes import FACTORS, SceneSpec, specs
from styles import render_blueprint, render_ink
from torch import Tensor, nn
from train_vae import to_float


class Judge(nn.Module):
    """Four convolutions and a head for each factor; the last head says whether the character is there."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        self.body = nn.Sequential(
            *(
                layer
                for a, b in itertools.pairwise(widths)
                for layer in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            ),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in FACTORS.items()})
        self.heads["character"] = nn.Linear(128, 2)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        features = self.body(pictures)
        return {name: head(features) for name, head in self.heads.items()}


def labels(scenes: list[SceneSpec]) -> dict[str, Tensor]:
    """The right answers; object and colour do not count where the character stands."""
    truth = {name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in FACTORS.items()}
    truth["character"] = torch.tensor([int(s.character) for s in scenes])
    for name in ("object", "colour"):
        truth[name][truth["character"] == 1] = -100
    return truth


def _draw(job: tuple[int, SceneSpec]) -> np.ndarray:
    index, scene = job
    style = index % 6
    picture = render_ink(scene) if style == 4 else render_blueprint(scene) if style == 5 else render_flat(scene)
    return np.asarray(picture)


def examples(work: Path, count: int, seed: int) -> tuple[list[SceneSpec], Tensor]:
    """Scenes (one in ten with the character) and their pictures in mixed styles; drawn on the first call."""
    rng = random.Random(seed)
    scenes = [replace(s, character=rng.random() < 0.1) for s in specs(count, seed, None)]
    path = work / f"judge-{count}-{seed}.pt"
    if not path.exists():
        with ProcessPoolExecutor(2) as pool:
            drawn = np.stack(list(pool.map(_draw, enumerate(scenes), chunksize=32)))
        torch.save(torch.from_numpy(drawn), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return scenes, to_float(torch.load(path).permute(0, 3, 1, 2))


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The pictures through the autoencoder."""
    with torch.autocast("cpu", torch.bfloat16):
        parts = [vae.decode(vae.encode(p).latent_dist.sample()).sample.float() for p in pictures.split(100)]
    return torch.cat(parts).clamp(-1, 1)


def _disturb(x: Tensor) -> Tensor:
    blur, noise = torch.rand(2).tolist()
    if blur < 0.3:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + torch.randn(len(x), 3, 1, 1) * 0.05 + torch.randn_like(x) * 0.06 * noise
    return torch.roll(x, torch.randint(-2, 3, (2,)).tolist(), (2, 3))


def load_judge(work: Path, vae: AutoencoderKL, count: int = 5400, epochs: int = 11) -> Judge:
    """The judge; trained and tested on the first call."""
    judge, path = Judge(), work / "judge.pt"
    if not path.exists():
        scenes, pictures = examples(work, count, 21)
        truth = labels(scenes)
        pool = torch.cat([pictures[::2], round_trip(vae, pictures[1::2])])
        order = torch.cat([torch.arange(0, count, 2), torch.arange(1, count, 2)])
        truth = {name: values[order] for name, values in truth.items()}
        optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
        steps = epochs * count // 64
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
        for _ in range(steps):
            pick = torch.randint(count, (64,))
            answers = judge(_disturb(pool[pick]))
            loss = sum(F.cross_entropy(answer, truth[name][pick]) for name, answer in answers.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        torch.save(judge.state_dict(), path)
    judge.load_state_dict(torch.load(path))
    return judge.eval()


@torch.no_grad()
def right(judge: Judge, pictures: Tensor, scenes: list[SceneSpec]) -> dict[str, Tensor]:
    """For each factor, which of the pictures show what their scene says."""
    truth = labels(scenes)
    return {name: answer.argmax(1) == truth[name] for name, answer in judge(pictures).items()}


def self_test(work: Path, judge: Judge, vae: AutoencoderKL, count: int = 480) -> dict[str, dict[str, float]]:
    """How often the judge itself is right, on drawn scenes that it has not seen, after the autoencoder's trip."""
    scenes, pictures = examples(work, count, 99)
    pictures = round_trip(vae, pictures)
    result: dict[str, dict[str, float]] = {}
    for style, picks in {"flat": (0, 1, 2, 3), "ink": (4,), "blueprint": (5,)}.items():
        chosen = [i for i in range(count) if i % 6 in picks]
        plain = [i for i in chosen if not scenes[i].character]
        good = right(judge, pictures[plain], [scenes[i] for i in plain])
        result[style] = {name: round(float(hits.float().mean()), 3) for name, hits in good.items()}
    return result
