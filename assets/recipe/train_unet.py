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
from scenes import PLACE_PHRASES, SceneSpec, shapes
from tokenizer import build_tokenizer
from torch import Tensor
from train_vae import make_vae, to_float
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BATCH = 16
WIDTH = 192
EMPTY_SHARE = 0.1
PLACE_LESSON = range(1000, 1250)
"""Steps in which captions name the place and nothing else.

To obey "on the left" the model must find out two things at once, which word matters and where it is itself, and neither
helps without the other.  Among all the other words it had not found out in 2,000 steps; on its own this takes 130.
"""


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
    """A UNet with random weights.

    Three resolutions, though there is attention at the middle one and in the middle block only: at 4 × 4 cells every
    cell sees the borders, and knows left from right.  With two resolutions the words for places were never obeyed.
    """
    return UNet2DConditionModel(
        sample_size=data.SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def load_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder, with its finished decoder once there is one; the latents are the same with either."""
    vae, finished = make_vae(), work / "vae-decoder.pt"
    vae.load_state_dict(torch.load(finished if finished.exists() else work / "vae.pt"))
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


def cached_tokens(work: Path, tokenizer: CLIPTokenizer, scenes: list[SceneSpec]) -> Tensor:
    """Token ids of all phrasings (scenes × phrasings × 77); computed on the first call."""
    path = work / f"tokens-{len(scenes)}.pt"
    if not path.exists():
        phrasings = [data.captions_of(scene, i) for i, scene in enumerate(scenes)]
        ids = tokenise(tokenizer, [text for texts in phrasings for text in texts])
        torch.save(ids.view(len(scenes), -1, 77), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return torch.load(path)


def loss_weights(scheduler: DDIMScheduler, gamma: float = 5.0, most: float = 40.0) -> Tensor:
    """The weight of each timestep: min-SNR where there is little noise, and more where there is much of it.

    What stands where is decided in heavy noise, and that is what a model learns last.
    """
    alphas = scheduler.alphas_cumprod
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr * snr.clamp(max=1.0).reciprocal().clamp(max=most)


def object_boxes(scenes: list[SceneSpec]) -> Tensor:
    """Where the object stands in each scene: left, top, right, bottom in latent cells."""
    rows = []
    for scene in scenes:
        points = [p for shape in shapes(scene) if shape.layer == "object" for p in shape.points]
        xs, ys = zip(*points, strict=True)
        rows.append((min(xs), min(ys), max(xs), max(ys)))
    return torch.tensor(rows) * (data.SIZE // 4)


def object_weights(boxes: Tensor, inside: float = 3.0) -> Tensor:
    """A map for each scene: the object counts more than its surroundings."""
    cells = torch.arange(data.SIZE // 4) + 0.5
    left, top, right, bottom = boxes.T[:, :, None]
    across, down = (cells > left) & (cells < right), (cells > top) & (cells < bottom)
    return 1 + (inside - 1) * (down[:, :, None] & across[:, None, :]).float().unsqueeze(1)


def train_unet(work: Path, count: int, doodles: int, steps: int) -> None:
    """Train; a run that was interrupted goes on from its checkpoint as if nothing had happened."""
    final = work / "unet.pt"
    if final.exists():
        return
    scenes, pictures, _ = data.load(work, count, doodles)
    tokenizer = build_tokenizer(work / "tokenizer")
    latents = cached_latents(work, pictures)
    scale = scaling_factor(latents)
    del pictures
    ids = cached_tokens(work, tokenizer, scenes)
    empty = tokenise(tokenizer, [""])[0]
    places = tokenise(tokenizer, [PLACE_PHRASES[scene.place] for scene in scenes])
    scheduler = make_scheduler()
    weights, boxes = loss_weights(scheduler), object_boxes(scenes)
    modules = {"unet": make_unet().to(memory_format=torch.channels_last), "text": make_text_encoder(tokenizer)}
    unet, text = modules["unet"].train(), modules["text"].train()
    print(f"unet {sum(p.numel() for p in unet.parameters())} text {sum(p.numel() for p in text.parameters())}")
    optimizers = Optimizers(modules.values(), muon_lr=2.5e-3, adam_lr=1e-3)
    average = Average([p for module in modules.values() for p in module.parameters()], 0.996)
    load_checkpoint(work / "unet-checkpoint.pt", modules, optimizers, average)
    start, log = time.monotonic(), 0.0
    while optimizers.steps < steps:
        rng = torch.Generator().manual_seed(optimizers.steps)
        pick = torch.randint(len(latents), (BATCH,), generator=rng)
        x = latents[pick].float() * scale
        if optimizers.steps in PLACE_LESSON:
            tokens = places[pick]
            t, noise = torch.randint(700, 1000, (BATCH,), generator=rng), torch.randn(x.shape, generator=rng)
        else:
            tokens = ids[pick, torch.randint(ids.shape[1], (BATCH,), generator=rng)]
            tokens = torch.where(torch.rand(BATCH, 1, generator=rng) < EMPTY_SHARE, empty, tokens)
            t, noise = torch.randint(1000, (BATCH,), generator=rng), torch.randn(x.shape, generator=rng)
            t[::2] = 500 + t[::2] // 2  # more of the heavy noise, in which places are decided
        noisy = scheduler.add_noise(x, noise, t).to(memory_format=torch.channels_last)
        optimizers.set_progress(optimizers.steps / steps)
        with torch.autocast("cpu", torch.bfloat16):
            context = text(tokens).last_hidden_state
            guess = unet(noisy, t, context).sample
        error = (F.mse_loss(guess.float(), noise, reduction="none") * object_weights(boxes[pick])).mean((1, 2, 3))
        loss = (error * weights[t]).mean()
        loss.backward()
        optimizers.step()
        average.update()
        log += float(loss.detach())
        if optimizers.steps % 50 == 0:
            print(f"unet {optimizers.steps} {time.monotonic() - start:.0f}s loss {log / 50:.4f}", flush=True)
            log = 0.0
            if optimizers.steps % 250 == 0:
                save_checkpoint(work / "unet-checkpoint.pt", modules, optimizers, average)
    average.copy_to()
    torch.save({name: module.state_dict() for name, module in modules.items()}, final.with_suffix(".tmp"))
    final.with_suffix(".tmp").replace(final)
