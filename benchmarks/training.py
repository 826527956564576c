"""A training step of Inkwash against the arithmetic of diffusers' DreamBooth-LoRA script, side by side in one run.

    python benchmarks/training.py                       (the embedded model, 64 px)
    python benchmarks/training.py --base FOLDER --resolution 256 --batch-size 1

Two processes stay resident and take turns step by step, so that a machine that slows down slows both; the median of the
pairwise ratios counts. The script's arithmetic: fp32, the VAE and the text encoder run in every step, peft LoRA on the same layers
and of the same rank, AdamW. Ours: what `inkwash train` does by default on this device, started in the environment that jobs get.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="inkwash-tiny")
    parser.add_argument("--dataset", default="ink-wash")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--method", default="lora", help="ours; the script has plain LoRA always")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", choices=["ours", "script"], help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return {"ours": _serve_ours, "script": _serve_script}[options.side](options)
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: _start(side, folder, sys.argv[1:]) for side in ("ours", "script")}
        for process in sides.values():
            _ask(process, "warm up")
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.steps):
            for side, process in sides.items():
                times[side].append(_ask(process, "step")["seconds"])
        peaks = {side: _ask(process, "peak")["peak_mb"] for side, process in sides.items()}
        for process in sides.values():
            process.terminate()
    ratios = [script / ours for ours, script in zip(times["ours"], times["script"], strict=True)]
    result = {
        "ours_seconds": round(statistics.median(times["ours"]), 4),
        "script_seconds": round(statistics.median(times["script"]), 4),
        "times_faster": round(statistics.median(ratios), 2),
        "peak_memory_ratio": round(peaks["ours"] / peaks["script"], 2),
        "steps": options.steps,
    }
    print(json.dumps(result))
    return 0


def _start(side: str, folder: str, arguments: list[str]) -> subprocess.Popen[str]:
    from trainer.jobs import worker_environment

    environment = worker_environment() if side == "ours" else dict(os.environ)
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, __file__, *arguments, "--side", side, "--data", str(Path(folder) / side)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _ask(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    stdin.write(what + "\n")
    stdin.flush()
    return json.loads(stdout.readline())


def _answer(step: Any, out: IO[str]) -> int:
    """Do a step per line of standard input; say how long each took."""
    import psutil

    for line in sys.stdin:
        if line.strip() == "peak":
            import resource

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                json.dumps({"peak_mb": peak, "now_mb": psutil.Process().memory_info().rss / 2**20}),
                file=out,
                flush=True,
            )
            continue
        started = time.perf_counter()
        step()
        print(json.dumps({"seconds": time.perf_counter() - started}), file=out, flush=True)
    return 0


def _config(options: argparse.Namespace) -> Any:
    from trainer.config.loading import build_config

    lora = {"rank": options.rank, "alpha": float(options.rank), "targets": "attention"}
    return build_config(
        {
            "model": {"base": options.base},
            "data": {"dataset": options.dataset, "resolution": options.resolution, "bucket_step": 16, "buckets": False},
            "adapter": {"method": options.method, "unet": lora},
            "training": {"steps": 100000, "batch_size": options.batch_size},
        }
    )


def _serve_ours(options: argparse.Namespace) -> int:
    from trainer.jobs import JobContext
    from trainer.paths import DataFolder
    from trainer.runs import create_run
    from trainer.training.setup import set_up
    from trainer.training.step import FiniteGuard, train_step

    data, config = DataFolder(Path(options.data)), _config(options)
    run = create_run(data, "train", "benchmark", config.model_dump(mode="json"))
    parts = set_up(JobContext(run, lambda event: None), config, data)
    guard, count = FiniteGuard(deferred=parts.device.type == "cuda"), 0

    def step() -> None:
        nonlocal count
        count += 1
        float(train_step(parts, count, guard).loss)

    return _answer(step, sys.stdout)


def _serve_script(options: argparse.Namespace) -> int:
    import torch
    import torch.nn.functional as functional
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from peft import LoraConfig

    from trainer.data.examples import make_examples
    from trainer.dataset.catalog import DatasetCatalog
    from trainer.dataset.pictures import open_picture
    from trainer.models.components import load_components
    from trainer.models.devices import pick_device
    from trainer.paths import DataFolder

    data, config = DataFolder(Path(options.data)), _config(options)
    device = pick_device("auto")
    parts = load_components(options.base, data, device, torch.float32)
    scan = DatasetCatalog(data).scan(options.dataset)
    examples = make_examples(scan.require_usable(), config.data, "")
    pixels = torch.stack([_pixels(open_picture(e.path), options.resolution) for e in examples]).to(device)
    captions = [example.caption for example in examples]
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    parts.unet.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=targets))
    trained = [p for p in parts.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler: Any = DDPMScheduler.from_config(parts.scheduler_config)
    scale, size = parts.vae.config.scaling_factor, options.batch_size

    def step() -> None:
        chosen = torch.randint(0, len(captions), (size,)).tolist()
        latents = parts.vae.encode(pixels[chosen]).latent_dist.sample() * scale
        tokens = parts.tokenizer(
            [captions[i] for i in chosen], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        states = parts.text_encoder(tokens.input_ids.to(device))[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (size,), device=device)
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        loss = functional.mse_loss(parts.unet(noisy_latents, timesteps, states).sample.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return _answer(step, sys.stdout)


def _pixels(picture: Any, side: int) -> Any:
    import numpy as np
    import torch

    square = picture.convert("RGB").resize((side, side))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 127.5 - 1


if __name__ == "__main__":
    sys.exit(main())
