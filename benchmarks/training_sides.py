"""The processes that `benchmarks/training.py` compares. Each does a step for each line that it reads, and says how long it took.

`ours` is what `inkwash train` does. `script` is the arithmetic of diffusers' `train_dreambooth_lora.py`: fp32, the VAE and the
text encoder run in every step, peft's LoRA on the same layers, of the same rank, AdamW. `floor` is the frozen UNet in our
number format with a backward pass and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
_BOFT_RANK = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "qlora": {"model": {"quantization": "nf4"}},
    "pivotal": {"adapter": {"embedding": {"num_vectors": 2}}},
    "joint": {"adapter": {"joint": {"rank": 8, "alpha": 8.0}}},
    "ladder": {"model": {"quantization": "nf4"}, "training": {"gradient_checkpointing": True}},
}
"""What is no method of its own but plain LoRA with something more; `ladder` is all that `--fit` has on a processor."""


def build(options: dict[str, Any]) -> Any:
    """Our settings for a row."""
    from trainer.config.loading import build_config, merge

    # A rank of 8 is below BOFT's smallest block for layers of 320 channels, whose number of blocks must be a power of two.
    rank = max(options["rank"], _BOFT_RANK) if options["method"] == "boft" else options["rank"]
    lora = {"rank": rank, "alpha": float(rank), "targets": "attention"}
    variant = VARIANTS.get(options["method"], {})
    has_unet, has_text = options["parts"] != "text", options["parts"] != "unet"
    settings = {
        "model": {"base": options["base"]},
        "data": {
            "dataset": options["dataset"],
            "resolution": options["resolution"],
            "bucket_step": 16,
            "buckets": False,
            "trigger_word": "inkstyle",
        },
        "adapter": {
            "method": "lora" if variant else options["method"],
            "unet": lora if has_unet else {"rank": 0},
            "text_encoder": lora if has_text else {"rank": 0},
        },
        "training": {"steps": 100000, "batch_size": options["batch_size"], "num_threads": options["threads"]},
    }
    if "joint" in variant.get("adapter", {}) and has_text:
        settings["adapter"]["joint"] = {"text_encoder_rank": rank, "text_encoder_alpha": float(rank)}
    return build_config(merge(settings, variant, options["changes"]))


def ours(options: dict[str, Any]) -> Callable[[], None]:
    """A step of ours."""
    from trainer.jobs import JobContext
    from trainer.paths import DataFolder
    from trainer.runs import create_run
    from trainer.training.setup import set_up
    from trainer.training.step import FiniteGuard, train_step

    data, config = DataFolder(Path(options["data"])), build(options)
    run = create_run(data, "train", "benchmark", config.model_dump(mode="json"))
    parts = set_up(JobContext(run, lambda event: None), config, data)
    guard, count = FiniteGuard(deferred=parts.device.type == "cuda"), 0

    def step() -> None:
        nonlocal count
        count += 1
        float(train_step(parts, count, guard).loss)

    return step


def script(options: dict[str, Any]) -> Callable[[], None]:
    """A step of diffusers' script."""
    import torch
    import torch.nn.functional as functional
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from peft import LoraConfig, inject_adapter_in_model

    from trainer.data.examples import make_examples
    from trainer.dataset.catalog import DatasetCatalog
    from trainer.dataset.pictures import open_picture
    from trainer.models.components import load_components
    from trainer.models.devices import pick_device
    from trainer.paths import DataFolder

    data, config = DataFolder(Path(options["data"])), build(options)
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    device, size = pick_device("auto"), options["batch_size"]
    parts = load_components(options["base"], data, device, torch.float32)
    scan = DatasetCatalog(data).scan(options["dataset"])
    examples = make_examples(scan.require_usable(), config.data, config.data.trigger_word)
    pixels = torch.stack([_pixels(open_picture(e.path), options["resolution"]) for e in examples]).to(device)
    captions = [example.caption for example in examples]
    trained: list[Any] = []
    targets = {
        "unet": (parts.unet, ["to_q", "to_k", "to_v", "to_out.0"]),
        "text": (parts.text_encoder, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    }
    for name in options["parts"].split("+"):
        model, modules = targets[name]
        inject_adapter_in_model(
            LoraConfig(r=options["rank"], lora_alpha=options["rank"], target_modules=modules), model
        )
        trained += [weight for weight in model.parameters() if weight.requires_grad]
    parts.unet.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    scheduler: Any = DDPMScheduler.from_config(parts.scheduler_config)
    scale = parts.vae.config.scaling_factor

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

    return step


def floor(options: dict[str, Any]) -> Callable[[], None]:
    """Forward and backward pass of the frozen UNet."""
    import torch

    from trainer.models.components import load_components
    from trainer.models.devices import pick_device, pick_dtype
    from trainer.paths import DataFolder

    if options["threads"]:
        torch.set_num_threads(options["threads"])
    device, config = pick_device("auto"), build(options)
    dtype = pick_dtype(config.model.precision, device)
    parts = load_components(options["base"], DataFolder(Path(options["data"])), device, dtype)
    side, unet = options["resolution"] // parts.vae_scale_factor, parts.unet
    latents = torch.randn(options["batch_size"], unet.config.in_channels, side, side, device=device, dtype=dtype)
    states = torch.randn(options["batch_size"], 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    timesteps = torch.full((options["batch_size"],), 500, device=device)
    latents.requires_grad_()

    def step() -> None:
        output = unet(latents, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        loss = output.float().square().mean()
        loss.backward()
        latents.grad = None
        loss.item()

    return step


def _pixels(picture: Any, side: int) -> Any:
    import numpy as np
    import torch

    square = picture.convert("RGB").resize((side, side))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).float() / 127.5 - 1


def reset_peak() -> None:
    """Forget the most memory that was in use so far, where the system can."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """The most memory that was in use since the start or `reset_peak`: the GPU's, else this process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import psutil

    return psutil.Process().memory_info().rss / 2**20


SIDES = {"ours": ours, "other": ours, "script": script, "floor": floor}


def main() -> int:
    """Serve a side: its options as JSON in the first argument, answers as JSON lines."""
    options = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    # What libraries print must not come between the answers.
    os.dup2(2, 1)
    step = SIDES[options["side"]](options)
    ready = time.time() - options["started"]
    step()
    first, whole = time.time() - options["started"], peak_mb()
    reset_peak()
    print(json.dumps({"ready": ready, "first": first, "peak_mb": whole}), file=out, flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        step()
        found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        print(json.dumps({**found, "peak_mb": peak_mb()}), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
