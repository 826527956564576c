"""Stage one: the autoencoder (AutoencoderKL, f = 4, four latent channels)."""

from __future__ import annotations

import time
from pathlib import Path

import data
import torch
import torch.nn.functional as F
from checkpoints import load_checkpoint, save_checkpoint
from diffusers import AutoencoderKL
from optim import Average, Optimizers
from torch import Tensor

BATCH = 16


def make_vae() -> AutoencoderKL:
    """An autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=data.SIZE,
        scaling_factor=1.0,
    )


def to_float(pictures: Tensor) -> Tensor:
    """Bytes to numbers from -1 to 1."""
    return pictures.float() / 127.5 - 1


def _batch(scenes: Tensor, doodles: Tensor) -> Tensor:
    """Half plain scenes, a quarter scenes in strange colours or in grey, a quarter doodles."""
    plain = to_float(scenes[torch.randint(len(scenes), (BATCH * 3 // 4,))])
    odd = plain[: BATCH // 4]
    mix = torch.eye(3) + 0.5 * torch.randn(len(odd), 3, 3)
    mix[::3] = torch.full((3, 3), 1 / 3)
    shift = 0.3 * torch.randn(len(odd), 3, 1, 1)
    odd = (torch.einsum("bij,bjhw->bihw", mix, odd) + shift).clamp(-1, 1)
    loose = to_float(doodles[torch.randint(len(doodles), (BATCH // 4,))])
    return torch.cat([plain[BATCH // 4 :], odd, loose])


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """Differences of pixels and of slopes; the slopes keep lines sharp."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_slopes(made), _slopes(true), strict=True))
    return F.l1_loss(made, true) + edges + F.mse_loss(made, true)


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels."""
    return float(-10 * torch.log10(F.mse_loss(made.clamp(-1, 1), true) / 4))


def train_vae(work: Path, count: int, doodles: int, budget: float) -> None:
    """Train until the budget of seconds is spent."""
    final = work / "vae.pt"
    if final.exists():
        return
    _, pictures, loose = data.load(work, count, doodles)
    vae = make_vae().to(memory_format=torch.channels_last).train()
    optimizers = Optimizers([vae], muon_lr=4e-3, adam_lr=2e-3)
    average = Average(list(vae.parameters()), 0.995)
    spent = load_checkpoint(work / "vae-checkpoint.pt", {"vae": vae}, optimizers, average)
    checks = to_float(pictures[:64])
    last, log = time.monotonic(), 0.0
    while spent < budget:
        x = _batch(pictures[64:], loose).to(memory_format=torch.channels_last)
        optimizers.set_progress(spent / budget)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            made = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(made.float(), x) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        optimizers.step()
        average.update()
        log += float(loss.detach())
        spent, last = spent + time.monotonic() - last, time.monotonic()
        if optimizers.steps % 50 == 0:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                quality = psnr(vae.decode(vae.encode(checks).latent_dist.mode()).sample.float(), checks)
            print(f"vae {optimizers.steps} {spent:.0f}s loss {log / 50:.4f} psnr {quality:.2f}", flush=True)
            log = 0.0
            if optimizers.steps % 250 == 0:
                save_checkpoint(work / "vae-checkpoint.pt", {"vae": vae}, optimizers, average, spent)
    average.copy_to()
    whiten(vae, to_float(pictures[:512]))
    vae.eval()
    with torch.no_grad():
        print(f"vae done, psnr {psnr(vae.decode(vae.encode(checks).latent_dist.mode()).sample, checks):.2f}")
    torch.save(vae.state_dict(), final.with_suffix(".tmp"))
    final.with_suffix(".tmp").replace(final)


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold the latents' mean and spread into the two 1×1 convolutions, so that each channel is centred and even."""
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    centre, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ centre
    post.weight *= spread.view(1, -1, 1, 1)
    quant.weight[:4] /= spread.view(-1, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - centre) / spread
    quant.bias[4:] -= 2 * spread.log()
