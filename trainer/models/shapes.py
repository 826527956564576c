"""A base model of shapes alone: what takes memory can be counted on it, and nothing is read but configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from trainer.base_models import FAMILY_FACTS, describe_base, resolve_base, resolve_vae
from trainer.config.model import BaseChoice
from trainer.models.clip_tokenizer import bundled_tokenizer
from trainer.models.components import Components, vae_dtype
from trainer.models.family import load_family
from trainer.models.single_file import CONFIGS, empty_part, empty_text_encoder
from trainer.models.storage import Placement, WeightStorage, adopt
from trainer.paths import DataFolder

META = torch.device("meta")


def shapes_of(choice: BaseChoice, data: DataFolder, dtype: torch.dtype, storage: WeightStorage) -> Components:
    """The parts of a base model on the meta device, kept as `storage` says; with tokenizers.

    Raises: ModelFileError: there is no such model, or it is incomplete.
    """
    vae_path = resolve_vae(choice.vae) if choice.vae else None
    path = resolve_base(choice.base, data, has_vae=vae_path is not None)
    info = describe_base(path)
    folder = path if path.is_dir() else CONFIGS / info.family
    vae_folder = vae_path if vae_path is not None and vae_path.is_dir() else folder / "vae"
    parts: dict[str, Any] = {"unet": empty_part(UNet2DConditionModel, folder / "unet")}
    parts["vae"] = empty_part(AutoencoderKL, vae_folder)
    for name in FAMILY_FACTS[info.family].text_encoders:
        parts[name] = empty_text_encoder(folder, name)
    for name, part in parts.items():
        # Buffers are made whole even in an empty model.
        nn.Module.to(part.requires_grad_(False).eval(), META, vae_dtype(dtype) if name == "vae" else dtype)
        if name != "vae":
            adopt(part, name, Placement(storage, META, dtype))
    for name in FAMILY_FACTS[info.family].text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = _tokenizer(path, folder / tokenizer)
    return Components(
        family=load_family(info.family),
        scheduler_config=_scheduler_config(folder),
        resolution=info.resolution,
        name=info.name,
        path=path,
        device=META,
        dtype=dtype,
        vae_path=vae_path,
        **parts,
    )


def _tokenizer(path: Path, folder: Path) -> CLIPTokenizer:
    if path.is_file():
        return bundled_tokenizer(folder / "tokenizer_config.json")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _scheduler_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
