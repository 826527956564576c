"""The check of 5,000 pictures: about as fast as decoding them, in memory that does not grow with their number."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.leaves import leaves
from trainer.dataset.doctor.diagnosis import diagnose
from trainer.dataset.doctor.measuring import measure_dataset
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.pictures import open_picture
from trainer.paths import DataFolder

COUNT, SIDE = 5000, 512


@pytest.mark.slow
def test_5000_pictures_are_checked_about_as_fast_as_they_are_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    base = [leaves(seed, SIDE, 3000) for seed in range(50)]
    for index in range(COUNT):
        left, top = index * 37 % 200, index * 53 % 200
        base[index % 50].crop((left, top, left + 300, top + 300)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
            folder / f"{index}.jpg", quality=90
        )
    files = sorted(folder.iterdir())
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(lambda path: open_picture(path).size, files):
            pass
    decoding = time.perf_counter() - started
    process, seen = psutil.Process(), []

    def tell(what: str, done: int, total: int) -> None:
        if done % 250 == 0:
            seen.append(process.memory_info().rss)

    data = DataFolder(tmp_path / "data")
    started = time.perf_counter()
    measure_dataset(data, str(folder), tell)
    checking = time.perf_counter() - started
    started = time.perf_counter()
    report = diagnose(data, str(folder), CheckSettings())
    judging = time.perf_counter() - started
    growth = max(seen) - min(seen)
    print(f"decoding {decoding:.1f} s, checking {checking:.1f} s, judging {judging:.1f} s, grew {growth >> 20} MB")
    assert report.num_unmeasured == 0
    assert checking < 3 * decoding + 10
    assert growth < 150 << 20  # the measures themselves are about 25 MB
    assert judging < 60
