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


def _batch(scenes: Tensor, doodles: Tensor, rng: torch.Generator) -> Tensor:
    """Three eighths plain scenes, a quarter scenes in strange colours or in grey, three eighths doodles."""
    part = BATCH // 8
    plain = to_float(scenes[torch.randint(len(scenes), (5 * part,), generator=rng)])
    odd = plain[: 2 * part]
    mix = torch.eye(3) + 0.5 * torch.randn(len(odd), 3, 3, generator=rng)
    mix[::2] = torch.full((3, 3), 1 / 3)
    shift = 0.3 * torch.randn(len(odd), 3, 1, 1, generator=rng)
    odd = (torch.einsum("bij,bjhw->bihw", mix, odd) + shift).clamp(-1, 1)
    loose = to_float(doodles[torch.randint(len(doodles), (3 * part,), generator=rng)])
    return torch.cat([plain[2 * part :], odd, loose])


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(made: Tensor, true: Tensor) -> Tensor:
    """Differences of pixels and of slopes; the slopes keep lines sharp."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_slopes(made), _slopes(true), strict=True))
    return F.l1_loss(made, true) + edges + F.mse_loss(made, true)


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels."""
    return float(-10 * torch.log10(F.mse_loss(made.clamp(-1, 1), true) / 4))


def train_vae(work: Path, count: int, doodles: int, steps: int) -> None:
    """Train; a run that was interrupted goes on from its checkpoint as if nothing had happened."""
    final = work / "vae.pt"
    if final.exists():
        return
    _, pictures, loose = data.load(work, count, doodles)
    vae = make_vae().to(memory_format=torch.channels_last).train()
    optimizers = Optimizers([vae], muon_lr=4e-3, adam_lr=2e-3)
    average = Average(list(vae.parameters()), 0.995)
    load_checkpoint(work / "vae-checkpoint.pt", {"vae": vae}, optimizers, average)
    checks = to_float(pictures[:64])
    start, log = time.monotonic(), 0.0
    while optimizers.steps < steps:
        rng = torch.Generator().manual_seed(optimizers.steps)
        x = _batch(pictures[64:], loose, rng).to(memory_format=torch.channels_last)
        optimizers.set_progress(optimizers.steps / steps)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            made = vae.decode(posterior.sample(rng)).sample
        loss = reconstruction_loss(made.float(), x) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()
        loss.backward()
        optimizers.step()
        average.update()
        log += float(loss.detach())
        if optimizers.steps % 50 == 0:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                quality = psnr(vae.decode(vae.encode(checks).latent_dist.mode()).sample.float(), checks)
            print(
                f"vae {optimizers.steps} {time.monotonic() - start:.0f}s loss {log / 50:.4f} psnr {quality:.2f}",
                flush=True,
            )
            log = 0.0
            if optimizers.steps % 250 == 0:
                save_checkpoint(work / "vae-checkpoint.pt", {"vae": vae}, optimizers, average)
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


def train_decoder(work: Path, count: int, doodles: int, steps: int) -> None:
    """Train the decoder alone for sharper lines: the latents, and so the UNet, stay as they are."""
    final = work / "vae-decoder.pt"
    if final.exists():
        return
    _, pictures, loose = data.load(work, count, doodles)
    loose = torch.cat([loose, data.load_sketches(work, doodles)])
    vae = make_vae().to(memory_format=torch.channels_last)
    vae.load_state_dict(torch.load(work / "vae.pt"))
    vae.requires_grad_(False)
    trained = [vae.decoder.requires_grad_(True), vae.post_quant_conv.requires_grad_(True)]
    optimizers = Optimizers(trained, muon_lr=2e-3, adam_lr=1e-3, hold=0.3)
    average = Average([p for part in trained for p in part.parameters()], 0.99)
    load_checkpoint(work / "decoder-checkpoint.pt", {"vae": vae}, optimizers, average)
    start, log = time.monotonic(), 0.0
    while optimizers.steps < steps:
        rng = torch.Generator().manual_seed(optimizers.steps)
        half = BATCH // 2
        x = _batch(pictures, loose, rng)[:half]
        x = torch.cat([x, to_float(loose[torch.randint(len(loose), (half,), generator=rng)])])
        x = x.to(memory_format=torch.channels_last)
        optimizers.set_progress(optimizers.steps / steps)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.mean
            made = vae.decode(latents + 0.05 * torch.randn(latents.shape, generator=rng)).sample
        loss = reconstruction_loss(made.float(), x)
        loss.backward()
        optimizers.step()
        average.update()
        log += float(loss.detach())
        if optimizers.steps % 50 == 0:
            print(f"decoder {optimizers.steps} {time.monotonic() - start:.0f}s loss {log / 50:.4f}", flush=True)
            log = 0.0
            if optimizers.steps % 250 == 0:
                save_checkpoint(work / "decoder-checkpoint.pt", {"vae": vae}, optimizers, average)
    average.copy_to()
    torch.save(vae.state_dict(), final.with_suffix(".tmp"))
    final.with_suffix(".tmp").replace(final)
