"""A data set of thousands of pictures, as the Dataset tab uses it: how long a user waits for each thing, and the memory it takes.

    python benchmarks/dataset_scale.py --pictures 5000

Seconds are those of the clock and, in brackets, of the processor: on a machine that does other work beside it, the second is the one to
compare. Memory is the process's resident size after each step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from app.services.datasets import PAGE_SIZE, DatasetService  # noqa: E402 - after the path is set
from trainer.dataset import listing, scan  # noqa: E402
from trainer.paths import DataFolder  # noqa: E402


def make_pictures(folder: Path, count: int) -> Path:
    """Pictures of 256 x 192 px, no two alike, each with a caption."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        colours = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((256, 192)).save(folder / f"picture {index:05d}.jpg", quality=80)
        (folder / f"picture {index:05d}.txt").write_text(f"a red house, number {index}, a tree", encoding="utf-8")
    return folder


class Timer:
    """Prints what each step took."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def __call__(self, title: str, step: Callable[[], Any]) -> Any:
        clock, cpu = time.perf_counter(), time.process_time()
        result = step()
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        memory = self._process.memory_info().rss / 1e6
        print(f"{title:52} {clock:8.2f} s  ({cpu:6.2f} s)  {memory:6.0f} MB", flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    arguments = parser.parse_args()
    timer = Timer()
    with tempfile.TemporaryDirectory() as place:
        folder = make_pictures(Path(place) / "pictures", arguments.pictures)
        service = DatasetService(DataFolder(Path(place) / "data"))
        info, _ = timer("import", lambda: service.store.create_from("many", [folder]))
        view = timer("first look: every picture is decoded", lambda: service.view(info.name))
        time.sleep(2.5)  # until the folder's times are old enough to be trusted
        listing._listings, scan._scans = listing.Remembered(100_000), listing.Remembered(20_000)
        timer("first look after a restart", lambda: service.view(info.name))
        timer("click: look again", lambda: service.view(info.name))
        timer("list of data sets", service.choices)
        timer(f"page of the gallery ({PAGE_SIZE}), thumbnails made", lambda: service.tiles(view, 1))
        timer(f"page of the gallery ({PAGE_SIZE}), thumbnails there", lambda: service.tiles(view, 1))
        name = view.pictures[100].name
        timer("write a caption", lambda: service.save_caption(info.name, name, "a blue house"))
        timer("look again at once", lambda: service.view(info.name))
        filled = {facts.name: f"{facts.caption}, ink" for facts in view.pictures}
        timer("write all captions", lambda: service.store.set_captions(info.name, filled))
        timer("look again at once", lambda: service.view(info.name))
        timer("undo", lambda: service.store.undo(info.name))
        for _ in range(20):
            service.view(info.name)
        timer("click, after 20 more", lambda: service.view(info.name))


if __name__ == "__main__":
    main()
