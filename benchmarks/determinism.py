"""What exactness costs: training steps with `training.deterministic` on and off, side by side in one run.

    python benchmarks/determinism.py                       (the embedded model, 64 px)
    python benchmarks/determinism.py --base FOLDER --resolution 512 --batch-size 2

One process holds the model and takes turns step by step, so that a machine that slows down slows both; the median of the
pairwise ratios counts. It also does the same steps twice from the same start, each way, and says whether the weights are
equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="inkwash-tiny")
    parser.add_argument("--dataset", default="ink-wash")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--targets", default="all+conv")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    # Read by cuBLAS when it starts, so that it holds for both ways; it costs memory, not time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with tempfile.TemporaryDirectory() as folder:
        parts, configs = _parts(options, Path(folder))
        print(json.dumps(_measure(parts, configs, options.steps)))
    return 0


def _parts(options: argparse.Namespace, folder: Path) -> tuple[Any, dict[bool, Any]]:
    from trainer.config.loading import build_config, merge
    from trainer.jobs import JobContext
    from trainer.paths import DataFolder
    from trainer.runs import create_run
    from trainer.training.setup import set_up

    settings = {
        "model": {"base": options.base},
        "data": {"dataset": options.dataset, "resolution": options.resolution, "bucket_step": 16, "buckets": False},
        "adapter": {"unet": {"rank": 8, "alpha": 8.0, "targets": options.targets}},
        "training": {"steps": 100000, "batch_size": options.batch_size},
    }
    configs = {exact: build_config(merge(settings, {"training": {"deterministic": exact}})) for exact in (True, False)}
    data = DataFolder(folder)
    run = create_run(data, "train", "benchmark", configs[True].model_dump(mode="json"))
    return set_up(JobContext(run, lambda event: None), configs[True], data), configs


def _measure(parts: Any, configs: dict[bool, Any], steps: int) -> dict[str, Any]:
    import torch

    from trainer.training.setup import prepare_torch
    from trainer.training.step import FiniteGuard, train_step

    guard = FiniteGuard(deferred=parts.device.type == "cuda")

    def step(number: int, *, exact: bool) -> float:
        prepare_torch(configs[exact], parts.device)
        # On a processor its own time counts, which other programs do not change.
        clock = time.process_time if parts.device.type == "cpu" else time.perf_counter
        started = clock()
        float(train_step(parts, number, guard).loss)
        return clock() - started

    def weights_after(count: int, *, exact: bool) -> list[Any]:
        parts.adapter.load_state_dict(start)
        parts.optimizer.optimizer.state.clear()
        for number in range(1, count + 1):
            step(number, exact=exact)
        return [weight.detach().clone() for weight in parts.trainable]

    start = {name: tensor.detach().clone() for name, tensor in parts.adapter.state_dict().items()}
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(1, steps + 4):
        for exact in (True, False) if number % 2 else (False, True):
            seconds = step(number, exact=exact)
            if number > 3:  # the first ones choose kernels and warm caches
                times[exact].append(seconds)
    equal = {}
    for exact in (True, False):
        pairs = zip(weights_after(5, exact=exact), weights_after(5, exact=exact), strict=True)
        equal[exact] = all(torch.equal(one, two) for one, two in pairs)
    ratios = [slow / fast for slow, fast in zip(times[True], times[False], strict=True)]
    return {
        "device": str(parts.device),
        "seconds_on": round(statistics.median(times[True]), 4),
        "seconds_off": round(statistics.median(times[False]), 4),
        "cost": round(statistics.median(ratios), 3),
        "same_bits_on": equal[True],
        "same_bits_off": equal[False],
        "steps": steps,
    }


if __name__ == "__main__":
    sys.exit(main())
