"""A base model in memory: its parts, loaded from a diffusers folder and frozen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.base_models import describe_base, resolve_base, weight_file
from trainer.errors import ModelFileError
from trainer.models.family import load_family
from trainer.paths import DataFolder

if TYPE_CHECKING:
    from trainer.models.family import Family

__all__ = ["Components", "load_components", "resolve_base"]
log = logging.getLogger(__name__)


@dataclass
class Components:
    """The parts of a base model, frozen, on `device`, with weights of `dtype` (the VAE in fp32 where that is fp16)."""

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    resolution: int
    name: str
    folder: Path
    device: torch.device
    dtype: torch.dtype

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Bring parts ("vae", "text_encoder") to the device for a while; those that were elsewhere go back."""
        parts: list[nn.Module] = [getattr(self, name) for name in names]
        homes = [next(part.parameters()).device for part in parts]
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part, home in zip(parts, homes, strict=True):
                part.to(home)

    def move_away(self, *names: str) -> None:
        """Free the device's memory of parts that are not needed now; `resident` brings them back."""
        for name in names:
            getattr(self, name).to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_components(base: str, data: DataFolder, device: torch.device, dtype: torch.dtype) -> Components:
    """Load a base model by its name in the list or its folder's path.

    Raises: ModelFileError: there is none, it is incomplete, of another architecture, or its weights do not fit.
    """
    folder = resolve_base(base, data)
    info = describe_base(folder)
    # fp16 overflows in SD 1.x's VAE and gives black pictures.
    vae_dtype = torch.float32 if dtype == torch.float16 else dtype
    # transformers draws progress bars and tables of "missing" weights on standard error.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **_options(folder / "unet", dtype))
        vae = AutoencoderKL.from_pretrained(folder / "vae", **_options(folder / "vae", vae_dtype))
        text_encoder = _load_text_encoder(folder / "text_encoder", dtype)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"The base model '{folder.name}' cannot be loaded: {error}",
            where=str(folder),
            fix="Copy the model's folder again, whole, or choose another base model.",
        ) from error
    for part in (unet, vae, text_encoder):
        nn.Module.to(part.requires_grad_(False).eval(), device)
    log.info("Loaded %s on %s in %s", folder, device, dtype)
    return Components(
        family=load_family(info.family),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler_config=scheduler_config,
        resolution=info.resolution,
        name=folder.name,
        folder=folder,
        device=device,
        dtype=dtype,
    )


def _options(part: Path, dtype: torch.dtype) -> dict[str, Any]:
    found = weight_file(part)
    return {
        "torch_dtype": dtype,
        "variant": found.variant if found else None,
        "use_safetensors": True,
        "local_files_only": True,
        "low_cpu_mem_usage": True,
    }


def _load_text_encoder(part: Path, dtype: torch.dtype) -> CLIPTextModel:
    """Load and verify: transformers fills in weights that it misses at random, with no more than a line in the log."""
    found = weight_file(part)
    loaded: Any = CLIPTextModel.from_pretrained(
        part,
        dtype=dtype,
        variant=found.variant if found else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    missing = [key for key in report["missing_keys"] if "position_ids" not in key]
    if missing:
        raise ValueError(f"the text encoder lacks {len(missing)} weights, such as {missing[0]}")
    return model
