"""A plain LoRA on the embedded model, as small as it can be: to measure what the model is good for.

python try_lora.py --data ../datasets/ink-wash --save WORK/ink.pt
"""

from __future__ import annotations

import argparse
import math
import random
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image, ImageOps
from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")


@dataclass
class Settings:
    """What may be tuned."""

    rank: int = 16
    alpha: float = 16
    lr: float = 5e-3
    text_lr: float = 0.0
    steps: int = 200
    batch: int = 8
    warmup: int = 10
    seed: int = 0
    snr_gamma: float = 5.0


def bucket(width: int, height: int, area: int = 64 * 64) -> tuple[int, int]:
    """The multiple-of-8 size of about the native area that is nearest to the picture's shape."""
    aspect = width / height
    return tuple(max(40, round(math.sqrt(area * a) / 8) * 8) for a in (aspect, 1 / aspect))


@torch.no_grad()
def encode(pipe: StableDiffusionPipeline, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Latents and token ids of every picture of a data set."""
    items = []
    for path in sorted(folder.glob("*.png")):
        image = Image.open(path).convert("RGB")
        image = ImageOps.fit(image, bucket(*image.size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        latent = pipe.vae.encode(pixels).latent_dist.mean[0] * pipe.vae.config.scaling_factor
        text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        tokens = pipe.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        items.append((latent, tokens.input_ids[0]))
    return items


def add_lora(pipe: StableDiffusionPipeline, settings: Settings) -> list[dict]:
    """Attach fresh adapters; the parameter groups of the optimizer."""
    torch.manual_seed(settings.seed)
    pipe.unet.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    targets = [*ATTENTION, *CONVOLUTIONS]
    pipe.unet.add_adapter(
        LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, init_lora_weights="gaussian"),
        "style",
    )
    groups = [{"params": [p for p in pipe.unet.parameters() if p.requires_grad], "lr": settings.lr}]
    if settings.text_lr:
        text_targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
        pipe.text_encoder.add_adapter(
            LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=text_targets), "style"
        )
        groups.append(
            {"params": [p for p in pipe.text_encoder.parameters() if p.requires_grad], "lr": settings.text_lr}
        )
    return groups


def train(pipe: StableDiffusionPipeline, items: list[tuple[Tensor, Tensor]], settings: Settings) -> dict[str, float]:
    """Train the attached adapters; seconds taken."""
    groups = add_lora(pipe, settings)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1, (i + 1) / settings.warmup) * (0.5 + 0.5 * math.cos(math.pi * i / settings.steps)),
    )
    shapes: dict[torch.Size, list[int]] = {}
    for i, (latent, _) in enumerate(items):
        shapes.setdefault(latent.shape, []).append(i)
    rng = random.Random(settings.seed)
    alphas = pipe.scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=settings.snr_gamma) / snr
    start = time.monotonic()
    for _ in range(settings.steps):
        members = rng.choices(list(shapes.values()), [len(m) for m in shapes.values()])[0]
        pick = rng.choices(members, k=settings.batch)
        x, ids = torch.stack([items[i][0] for i in pick]), torch.stack([items[i][1] for i in pick])
        t, noise = torch.randint(1000, (len(pick),)), torch.randn_like(x)
        noisy = pipe.scheduler.add_noise(x, noise, t).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(bool(settings.text_lr)):
                context = pipe.text_encoder(ids).last_hidden_state
            guess = pipe.unet(noisy, t, context).sample
        loss = (F.mse_loss(guess.float(), noise, reduction="none").mean((1, 2, 3)) * weights[t]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 1), "seconds_per_step": round(seconds / settings.steps, 3)}


def load_base(folder: Path) -> StableDiffusionPipeline:
    """The pipeline, in single precision."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.eval()
    return pipe


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline, prompts: list[str], steps: int = 20, guidance: float = 4.0, seed: int = 1000
) -> Tensor:
    """Pictures from -1 to 1; the i-th prompt always has the i-th noise."""
    made = []
    for first in range(0, len(prompts), 20):
        part = prompts[first : first + 20]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(part))]
        with torch.autocast("cpu", torch.bfloat16):
            made.append(
                pipe(
                    part,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generators,
                    output_type="pt",
                ).images.float()
            )
    return torch.cat(made).clamp(0, 1) * 2 - 1


def main() -> None:
    """Train, and draw a strip of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "models" / "inkwash-tiny")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--out", type=Path, required=True, help="PNG strip of generated pictures")
    args = parser.parse_args()
    pipe = load_base(args.model)
    trigger = tomllib.loads((args.data / "dataset.toml").read_text(encoding="utf-8"))["trigger_word"]
    print(train(pipe, encode(pipe, args.data), Settings(steps=args.steps)))
    pictures = generate(pipe, [f"{trigger}, a red house, on the left, on a lake, by day, mountains behind"] * 8)
    strip = ((torch.cat(list(pictures), 2) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(strip).save(args.out)


if __name__ == "__main__":
    main()
