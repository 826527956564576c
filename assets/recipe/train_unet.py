"""Stage two: the UNet and the text encoder together, on the autoencoder's latents."""

from __future__ import annotations

import time
from pathlib import Path

import data
import torch
import torch.nn.functional as F
from checkpoints import load_checkpoint, save_checkpoint
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from optim import Average, Optimizers
from tokenizer import build_tokenizer
from torch import Tensor
from train_vae import make_vae, to_float
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BATCH = 24
WIDTH = 192
EMPTY_SHARE = 0.1


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.x."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """A UNet with random weights; its attention stands at the lower resolution."""
    return UNet2DConditionModel(
        sample_size=data.SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 160),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def load_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder."""
    vae = make_vae()
    vae.load_state_dict(torch.load(work / "vae.pt"))
    return vae.eval()


@torch.no_grad()
def cached_latents(work: Path, pictures: Tensor) -> Tensor:
    """The latents of all pictures; computed on the first call."""
    path = work / f"latents-{len(pictures)}.pt"
    if not path.exists():
        vae = load_vae(work)
        with torch.autocast("cpu", torch.bfloat16):
            parts = [vae.encode(to_float(part)).latent_dist.mean.half() for part in pictures.split(100)]
        torch.save(torch.cat(parts), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return torch.load(path)


def scaling_factor(latents: Tensor) -> float:
    """What brings the latents to unit spread."""
    return 1.0 / float(latents[:2000].float().std())


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, padded to the 77 positions."""
    return tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def min_snr_weights(scheduler: DDIMScheduler, gamma: float = 5.0) -> Tensor:
    """The weight of each timestep (min-SNR)."""
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr


def train_unet(work: Path, count: int, doodles: int, budget: float) -> None:
    """Train until the budget of seconds is spent."""
    final = work / "unet.pt"
    if final.exists():
        return
    scenes, pictures, _ = data.load(work, count, doodles)
    tokenizer = build_tokenizer(work / "tokenizer")
    latents = cached_latents(work, pictures)
    scale = scaling_factor(latents)
    del pictures
    ids = torch.stack([tokenise(tokenizer, data.captions_of(scene, i)) for i, scene in enumerate(scenes)])
    empty = tokenise(tokenizer, [""])[0]
    scheduler = make_scheduler()
    weights = min_snr_weights(scheduler)
    modules = {"unet": make_unet().to(memory_format=torch.channels_last), "text": make_text_encoder(tokenizer)}
    unet, text = modules["unet"].train(), modules["text"].train()
    print(f"unet {sum(p.numel() for p in unet.parameters())} text {sum(p.numel() for p in text.parameters())}")
    optimizers = Optimizers(modules.values(), muon_lr=2.5e-3, adam_lr=1e-3)
    average = Average([p for module in modules.values() for p in module.parameters()], 0.996)
    spent = load_checkpoint(work / "unet-checkpoint.pt", modules, optimizers, average)
    torch.manual_seed(optimizers.steps)
    last, log = time.monotonic(), 0.0
    while spent < budget:
        pick = torch.randint(len(latents), (BATCH,))
        x = latents[pick].float() * scale
        tokens = ids[pick, torch.randint(ids.shape[1], (BATCH,))]
        tokens = torch.where(torch.rand(BATCH, 1) < EMPTY_SHARE, empty, tokens)
        t, noise = torch.randint(1000, (BATCH,)), torch.randn_like(x)
        noisy = scheduler.add_noise(x, noise, t).to(memory_format=torch.channels_last)
        optimizers.set_progress(spent / budget)
        with torch.autocast("cpu", torch.bfloat16):
            context = text(tokens).last_hidden_state
            guess = unet(noisy, t, context).sample
        error = F.mse_loss(guess.float(), noise, reduction="none").mean((1, 2, 3))
        loss = (error * weights[t]).mean()
        loss.backward()
        optimizers.step()
        average.update()
        log += float(loss.detach())
        spent, last = spent + time.monotonic() - last, time.monotonic()
        if optimizers.steps % 50 == 0:
            print(f"unet {optimizers.steps} {spent:.0f}s loss {log / 50:.4f}", flush=True)
            log = 0.0
            if optimizers.steps % 200 == 0:
                save_checkpoint(work / "unet-checkpoint.pt", modules, optimizers, average, spent)
    average.copy_to()
    torch.save({name: module.state_dict() for name, module in modules.items()}, final.with_suffix(".tmp"))
    final.with_suffix(".tmp").replace(final)
