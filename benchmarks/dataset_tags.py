"""Captions of a large data set: reading, the tag table, a page of captions, an edit of all of them, undo.

    python -m benchmarks.dataset_tags            5,000 pictures with 20 tags each
    python -m benchmarks.dataset_tags 20000

Prints seconds, and those that the processor worked, which a busy machine does not change. Goals for 5,000 pictures: table and page under 1 s, an edit of all captions under 2 s.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from PIL import Image

from app.services.captions import CaptionQuery, CaptionService
from trainer.dataset.store import DatasetStore
from trainer.paths import DataFolder

Result = TypeVar("Result")


def make_set(folder: Path, number: int) -> None:
    """Small pictures with captions of 20 of 3,000 tags, the first of them the commonest."""
    folder.mkdir()
    generator = random.Random(0)
    words = [f"tag number {index}" for index in range(3000)]
    weights = [1 / (1 + index) for index in range(len(words))]
    for index in range(number):
        # A colour for each, so that no thumbnail serves for two.
        colour = (index % 256, index // 256, 90)
        Image.new("RGB", (64, 64), colour).save(folder / f"picture {index}.png")
        tags = dict.fromkeys(generator.choices(words, weights, k=20))
        (folder / f"picture {index}.txt").write_text(", ".join(tags), encoding="utf-8")


def timed(what: str, action: Callable[[], Result]) -> Result:
    """Print how long an action takes; it is done once."""
    started, busy = time.perf_counter(), time.process_time()
    result = action()
    seconds = f"{time.perf_counter() - started:6.2f} s, of the processor {time.process_time() - busy:6.2f} s"
    print(f"{what:44s} {seconds}", flush=True)
    return result


def main() -> None:
    """Measure."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as scratch:
        make_set(Path(scratch) / "set", number)
        data = DataFolder(Path(scratch) / "data")
        name = DatasetStore(data).link(Path(scratch) / "set").name
        service = CaptionService(data)
        timed("the first look at the pictures", lambda: service.store.scan(name))
        view = timed("tag table and a page of captions", lambda: service.page(name, CaptionQuery()))
        assert view.num_found == number
        timed("thumbnails of the page, first time", lambda: [service.thumbnail(row.picture) for row in view.rows])
        timed("thumbnails of the page", lambda: [service.thumbnail(row.picture) for row in view.rows])
        query = CaptionQuery(having=("tag number 0",), order="most_tags", page=3)
        timed("filtered and sorted, page 4", lambda: service.page(name, query))
        search = CaptionQuery(text=r"number (\d)\1\b", is_regex=True)
        timed("found by a regular expression", lambda: service.page(name, search))
        edit = service.edit("replace", r"number (\d+)", r"no. \1", is_regex=True)
        plan = timed("preview of a replacement in all captions", lambda: service.plan(name, CaptionQuery(), edit))
        assert len(plan.changes) == number
        timed("the replacement", lambda: service.apply(name, CaptionQuery(), edit))
        timed("tag table and page afterwards", lambda: service.page(name, CaptionQuery()))
        timed("undo", lambda: service.store.undo(name))
        timed("redo", lambda: service.store.redo(name))


if __name__ == "__main__":
    main()
