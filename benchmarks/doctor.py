"""What the check of a data set finds and mistakes, and how fast it is.

    python benchmarks/doctor.py                     # scores, on pictures made here and those given
    python benchmarks/doctor.py --photos ~/Pictures --originals 60
    python benchmarks/doctor.py --speed 5000        # seconds, against decoding alone, and peak memory

Scores are for pairs of an original and one copy among other originals, so that no copy is found by way of another.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from PIL import Image  # noqa: E402

from tests.leaves import BLURS, COPIES, ENLARGEMENTS, SHARP, leaves  # noqa: E402
from trainer.dataset.doctor import similar  # noqa: E402
from trainer.dataset.doctor.checks.enlarged import is_enlarged  # noqa: E402
from trainer.dataset.doctor.checks.sharpness import BLURRED  # noqa: E402
from trainer.dataset.doctor.diagnosis import diagnose  # noqa: E402
from trainer.dataset.doctor.measures import Measures, measure  # noqa: E402
from trainer.dataset.doctor.measuring import measure_dataset  # noqa: E402
from trainer.dataset.doctor.settings import CheckSettings  # noqa: E402
from trainer.dataset.doctor.spectrum import finest  # noqa: E402
from trainer.dataset.pictures import is_picture_name, open_picture  # noqa: E402
from trainer.paths import DataFolder  # noqa: E402


def originals(count: int, photos: Path | None) -> list[Image.Image]:
    """Photos, where a folder of them is given, and made pictures."""
    files = sorted(path for path in photos.rglob("*") if is_picture_name(path)) if photos else []
    found = [open_picture(path) for path in files[:count]]
    return found + [leaves(seed) for seed in range(count - len(found))]


def score_copies(pictures: list[Image.Image]) -> None:
    """Print recall and precision for each kind of copy."""
    known = [measure(image) for image in pictures]
    print(f"{'copies':42s} recall  precision")
    for kind, change in COPIES.items():
        copies = [measure(change(image)) for image in pictures]
        pairs = {(a, b) for group in similar.groups([*known, *copies]) for a in group for b in group if a < b}
        right = {(index, index + len(known)) for index in range(len(known))}
        precision = len(pairs & right) / len(pairs) if pairs else 1.0
        print(f"{kind:42s} {len(pairs & right) / len(right):6.3f}  {precision:9.3f}")


def score_detail(pictures: list[Image.Image]) -> None:
    """Print how many of each kind are called blurred and enlarged."""
    rules: dict[str, Callable[[Measures], bool]] = {
        "blurred": lambda found: finest(found.spectrum) < BLURRED,
        "enlarged": is_enlarged,
    }
    print(f"\n{'share that is called':42s} " + "  ".join(rules))
    for kind, change in {**SHARP, **BLURS, **ENLARGEMENTS}.items():
        found = [measure(change(image)) for image in pictures]
        shares = [sum(map(rule, found)) / len(found) for rule in rules.values()]
        print(f"{kind:42s} " + "  ".join(f"{share:7.3f}" for share in shares))


def time_it(count: int, side: int) -> None:
    """Time the pass over many JPEGs, and decoding them alone on as many threads."""
    with tempfile.TemporaryDirectory() as root:
        folder, data = Path(root) / "pictures", DataFolder(Path(root) / "data")
        folder.mkdir()
        base = [leaves(seed, 192).resize((side, side), Image.Resampling.BICUBIC) for seed in range(20)]
        for index in range(count):
            # Of another part and size each, so that none is a copy of another's file.
            left = (index * 37) % (side // 4)
            cut = base[index % 20].crop((left, (index * 53) % (side // 4), side, side))
            cut.save(folder / f"{index}.jpg", quality=88)
        threads = os.cpu_count() or 1
        alone = _seconds(lambda: _decode_all(folder, threads))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        checked = _seconds(lambda: measure_dataset(data, str(folder)))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        judged = _seconds(lambda: diagnose(data, str(folder), CheckSettings()))
        again = _seconds(lambda: diagnose(data, str(folder), CheckSettings()))
    print(f"\n{count} JPEGs of {side} px, {threads} threads: decoding alone {alone}, the check {checked}")
    print(f"judging {judged}, again {again}; peak memory {before >> 10} MB -> {after >> 10} MB")


def _decode_all(folder: Path, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda path: open_picture(path).size, folder.iterdir()))


def _seconds(work: Callable[[], object]) -> str:
    """How long it takes, and how long the processors work for it: what else a machine does changes only the first."""
    started, busy = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - started:.1f} s ({time.process_time() - busy:.1f} s of processors)"


def main() -> None:
    """Score, or time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", type=int, default=60)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--speed", type=int, default=0, metavar="PICTURES")
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    if options.speed:
        time_it(options.speed, options.side)
        return
    pictures = originals(options.originals, options.photos)
    score_copies(pictures)
    score_detail(pictures)


if __name__ == "__main__":
    main()
