"""Small training runs for tests: a folder of drawn pictures, settings that take seconds, and a run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.config.loading import merge
from trainer.events import Event, EventWriter
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.runs import Run, create_run

SIDE = 64


def make_pictures(folder: Path, count: int = 5, *, seed: int = 0) -> Path:
    """Save `count` pictures of two shapes, each with its own caption."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        height = SIDE if index % 2 else SIDE * 3 // 2
        colours = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((SIDE, height), Image.Resampling.BICUBIC)
        image.save(folder / f"picture-{index}.png")
        (folder / f"picture-{index}.txt").write_text(f"a red house, number {index}", encoding="utf-8")
    return folder


def tiny_settings(model: Path, pictures: Path, *layers: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run on `tests.tiny_model`, with `layers` merged over them."""
    settings = {
        "model": {"base": str(model), "precision": "fp32"},
        "data": {"dataset": str(pictures), "resolution": SIDE, "bucket_step": 16, "trigger_word": "zib"},
        "adapter": {"unet": {"rank": 4, "alpha": 4.0}},
        "optimizer": {"unet_learning_rate": 1e-3, "text_encoder_learning_rate": 1e-3},
        "training": {"steps": 6, "batch_size": 2, "num_threads": 1},
        "validation": {"every": 0, "num_pictures": 2, "num_timesteps": 2},
        "preview": {"every": 0, "num_inference_steps": 1, "prompts": ["a red house"], "guidance_scale": 1.0},
        "save": {"name": "test", "checkpoint_every": 2, "keep_checkpoints": 2, "precision": "fp32"},
    }
    return merge(settings, *layers)


def new_run(data: DataFolder, settings: dict[str, Any]) -> Run:
    """A run's folder."""
    return create_run(data, "train", "test", settings)


def train_here(run: Run, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
    """Train in this process, as `trainer.worker` does in its own; errors come out as they are.

    `on_event` sees each event after it was written and may raise, as a process that dies there.
    """
    from trainer.training.job import train

    writer = EventWriter(run.events_path)

    def emit(event: Event) -> None:
        writer(event)
        if on_event is not None:
            on_event(event)

    try:
        return train(JobContext(run, emit))
    finally:
        writer.close()
