"""Stage three: the diffusers folder, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from tokenizer import build_tokenizer
from torch import nn
from train_unet import load_vae, make_scheduler, make_text_encoder, make_unet, scaling_factor


def trained_modules(work: Path) -> tuple[nn.Module, nn.Module]:
    """The UNet and the text encoder: the finished ones, or the running average of an unfinished training."""
    unet, text = make_unet(), make_text_encoder(build_tokenizer(work / "tokenizer"))
    if (work / "unet.pt").exists():
        state = torch.load(work / "unet.pt")
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
    else:
        state = torch.load(work / "unet-checkpoint.pt")
        params = [*unet.parameters(), *text.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(params, state["average"])
    return unet.eval(), text.eval()


def load_pipeline(work: Path) -> StableDiffusionPipeline:
    """The pipeline as trained so far, in single precision."""
    vae: AutoencoderKL = load_vae(work)
    latents = torch.load(next(work.glob("latents-*.pt")))
    vae.register_to_config(scaling_factor=round(scaling_factor(latents), 5))
    unet, text = trained_modules(work)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=build_tokenizer(work / "tokenizer"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_pipeline(work: Path, out: Path) -> None:
    """Write the folder file by file, each one whole or not at all; cards beside the weights stay."""
    temporary = work / "export"
    shutil.rmtree(temporary, ignore_errors=True)
    load_pipeline(work).to(dtype=torch.float16).save_pretrained(temporary, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # the classic files, which older libraries and other programs read
        shutil.copyfile(work / "tokenizer" / name, temporary / "tokenizer" / name)
    for source in sorted(temporary.rglob("*")):
        if source.is_file():
            target = out / source.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(target.name + ".tmp")
            shutil.copyfile(source, beside)
            beside.replace(target)
    shutil.rmtree(temporary)
