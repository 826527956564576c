"""What a training run takes of memory, rung by rung of the ladder, beside what `inkwash train --estimate` says.

    python benchmarks/memory.py                                        (the embedded model, 64 px)
    python benchmarks/memory.py --base sd1.safetensors --resolution 256 --rungs bf16,checkpointed,nf4

Each rung is a run of two steps in a process of its own, in the environment that jobs get; its peak is the resident memory that
the system reports. On a processor only: where nothing but the process's memory counts, measure with the tools of the device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CHECKPOINTED = {"training.gradient_checkpointing": True}
RUNGS: dict[str, dict[str, Any]] = {
    "fp32": {"model.precision": "fp32"},
    "bf16": {"model.precision": "bf16"},
    "fp32 checkpointed": {"model.precision": "fp32", **CHECKPOINTED},
    "checkpointed": {"model.precision": "bf16", **CHECKPOINTED},
    "int8": {"model.precision": "bf16", "model.quantization": "int8", **CHECKPOINTED},
    "fp8": {"model.precision": "bf16", "model.quantization": "fp8", **CHECKPOINTED},
    "nf4": {"model.precision": "bf16", "model.quantization": "nf4", **CHECKPOINTED},
    "text encoder": {"model.precision": "bf16", "adapter.text_encoder.rank": 8},
}


def settings_of(options: argparse.Namespace, rung: str) -> dict[str, Any]:
    """The run's settings by path."""
    return {
        "model.base": options.base,
        "data.dataset": "ink-wash",
        "data.resolution": options.resolution,
        "data.buckets": False,
        "data.bucket_step": 64 if options.resolution >= 256 else 16,
        "adapter.unet.rank": options.rank,
        "training.steps": options.steps,
        "training.batch_size": options.batch_size,
        "validation.num_pictures": 1,
        "validation.num_timesteps": 1,
        "preview.prompts": ["a mountain"],
        "preview.num_inference_steps": 1,
        "preview.guidance_scale": 1.0,
        **RUNGS[rung],
    }


def measure(options: argparse.Namespace, rung: str) -> dict[str, float]:
    """Run it in this process."""
    import resource

    from trainer.config.loading import build_config, nest
    from trainer.jobs import JobContext
    from trainer.paths import DataFolder
    from trainer.runs import create_run
    from trainer.training.estimate import estimate
    from trainer.training.job import train

    config = build_config(nest(settings_of(options, rung)))
    if options.estimate:
        found = estimate(config, DataFolder(Path(options.data)))
        return {"peak_gb": found.peak / 1e9, "activations_gb": found.parts["activations"] / 1e9}
    times: list[float] = []

    def emit(event: Any) -> None:
        if type(event).__name__ == "StepDone":
            times.append(time.monotonic())

    run = create_run(DataFolder(Path(options.data)), "train", "memory", config.model_dump(mode="json"))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    train(JobContext(run, emit))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"imports_gb": start / 1e9, "peak_gb": peak / 1e9, "step_seconds": times[-1] - times[-2]}


def main() -> int:
    """A row a rung."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="inkwash-tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rungs", default=",".join(RUNGS))
    parser.add_argument("--rung", help=argparse.SUPPRESS)
    parser.add_argument("--estimate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rung:
        print(json.dumps(measure(options, options.rung)))
        return 0
    from trainer.jobs import worker_environment

    with tempfile.TemporaryDirectory() as folder:
        for rung in options.rungs.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--rung", rung, "--data", folder]
            found, said = (
                json.loads(
                    subprocess.run(
                        each, check=True, stdout=subprocess.PIPE, text=True, env=worker_environment()
                    ).stdout.splitlines()[-1]
                )
                for each in (command, [*command, "--estimate"])
            )
            off = said["peak_gb"] / found["peak_gb"] - 1
            print(
                f"{rung:18} measured {found['peak_gb']:.2f} GB, estimated {said['peak_gb']:.2f} GB ({off:+.0%}), "
                f"{found['step_seconds']:.2f} s a step, imports {found['imports_gb']:.2f} GB",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
