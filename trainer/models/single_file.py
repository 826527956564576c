"""Base models from single files, offline: the original (LDM) layout onto diffusers' classes with bundled configurations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils.modeling import set_module_tensor_to_device
from diffusers.loaders import single_file_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from trainer.base_models import FAMILY_FACTS, weight_file
from trainer.base_models.detection import INPAINTING_CHANNELS, TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIXES
from trainer.errors import Finding, ModelFileError
from trainer.models.clip_tokenizer import bundled_tokenizer
from trainer.models.storage import Keeper, Placement
from trainer.models.stored import StoredTensor, open_tensors
from trainer.paths import ASSETS

CONFIGS = ASSETS / "configs"
TEXT_ENCODER_CLASSES: dict[str, Any] = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
# Saved by older programs; today's classes make them themselves.
_SURPLUS = ("position_ids", "logit_scale")

Tensors = Mapping[str, StoredTensor]
Convert = Callable[[nn.Module, dict[str, Any], dict[str, StoredTensor]], dict[str, StoredTensor]]


def load_single_file(
    path: Path, family: str, placement: Placement, vae_dtype: torch.dtype, *, with_vae: bool = True
) -> dict[str, Any]:
    """The parts of a checkpoint, by the names that Components has for them, kept as `placement` says.

    Each weight is read straight into its place: memory peaks at the loaded weights and one tensor.

    Raises: ModelFileError: it is damaged, or its tensors are not those of the family's published models.
    """
    tensors, folder, dtype = open_tensors(path), CONFIGS / family, placement.dtype
    unet_keeper = partial(placement.keeper, part="unet")
    unet_tensors = _unet(tensors, folder)
    parts: dict[str, Any] = {"unet": build(_unet_for(folder, unet_tensors), unet_tensors, dtype, path, unet_keeper)}
    if with_vae:
        parts["vae"] = build(_empty_vae(folder), _vae(tensors, folder), vae_dtype, path)
    for name in FAMILY_FACTS[family].text_encoders:
        encoder = empty_text_encoder(folder, name)
        weights = _text_encoder(encoder, tensors, TEXT_PREFIXES[family][name])
        parts[name] = build(encoder, weights, dtype, path, partial(placement.keeper, part=name))
        tokenizer = name.replace("text_encoder", "tokenizer")
        parts[tokenizer] = bundled_tokenizer(folder / tokenizer / "tokenizer_config.json")
    return {**parts, "scheduler_config": _read(folder / "scheduler" / "scheduler_config.json")}


def load_vae_file(path: Path, family: str, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE alone, in the original layout or in diffusers', with or without a prefix. Raises ModelFileError."""
    tensors, folder = open_tensors(path), CONFIGS / family
    has_diffusers_names = any("down_blocks." in name for name in tensors)
    weights = dict(tensors) if has_diffusers_names else _vae(tensors, folder)
    return build(_empty_vae(folder), weights, dtype, path)


def load_folder_part(folder: Path, placement: Placement) -> Any:
    """The UNet or a text encoder of a diffusers folder, weight by weight, kept as `placement` says. Raises ModelFileError."""
    found = weight_file(folder)
    stored: dict[str, StoredTensor] = {}
    for file in found.files if found else ():
        stored |= open_tensors(file)
    keeper = partial(placement.keeper, part=folder.name)
    if folder.name == "unet":
        return build(empty_part(UNet2DConditionModel, folder), stored, placement.dtype, folder, keeper)
    encoder = empty_text_encoder(folder.parent, folder.name)
    return build(encoder, _with_levels(encoder, stored), placement.dtype, folder, keeper)


def build(
    model: Any,
    weights: Mapping[str, StoredTensor],
    dtype: torch.dtype,
    path: Path,
    make_keeper: Callable[[nn.Module], Keeper | None] = lambda _: None,
) -> Any:
    """Fill a model that has shapes only. Names and shapes are compared before anything is read.

    What `make_keeper` gives for the model decides how some of its weights are kept.

    Raises: ModelFileError: tensors are missing, unknown or of another shape.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor for name, tensor in weights.items() if not name.endswith(_SURPLUS)}
    findings = [Finding(name, "is missing") for name in wanted.keys() - given.keys()]
    findings += [
        Finding(name, "is not in the published models of this family") for name in given.keys() - wanted.keys()
    ]
    findings += [
        Finding(name, f"is {tuple(given[name].shape)} instead of {tuple(shape)}")
        for name, shape in wanted.items()
        if name in given and given[name].shape != shape
    ]
    if findings:
        raise ModelFileError(
            f"The {type(model).__name__} in '{path.name}' differs from the published models of its family in "
            f"{len(findings)} tensors.",
            where=str(path),
            findings=sorted(findings, key=str),
            fix="Get the file again, whole; distilled or enlarged models have to be diffusers folders.",
        )
    keeper = make_keeper(model)
    for name in wanted:
        if keeper is not None and (layer := keeper.layer_of(name)) is not None:
            keeper.fill(layer, given[name].load(keeper.reading_format))
            continue
        value = given[name].load(dtype)
        # Without its `dtype` the value would be turned back into the empty model's fp32.
        set_module_tensor_to_device(model, name, "cpu", value=value, dtype=dtype, clear_cache=False)
    return model


def _empty_unet(folder: Path) -> UNet2DConditionModel:
    return empty_part(UNet2DConditionModel, folder / "unet")


def _unet_for(folder: Path, tensors: Mapping[str, StoredTensor]) -> UNet2DConditionModel:
    """The family's UNet of shapes alone, or that of its inpainting model, which has more inputs."""
    first = tensors.get("conv_in.weight")
    is_inpainting = first is not None and len(first.shape) == 4 and first.shape[1] == INPAINTING_CHANNELS
    changes = {"in_channels": INPAINTING_CHANNELS} if is_inpainting else {}
    return empty_part(UNet2DConditionModel, folder / "unet", **changes)


def _empty_vae(folder: Path) -> AutoencoderKL:
    return empty_part(AutoencoderKL, folder / "vae")


def empty_part(model_class: Any, folder: Path, **changes: Any) -> Any:
    """A UNet or VAE of shapes alone, by the configuration in this folder, with these changes."""
    with init_empty_weights():
        return model_class.from_config({**_read(folder / "config.json"), **changes})


def empty_text_encoder(folder: Path, name: str) -> Any:
    """A text encoder of shapes alone, by the configuration in the folder of that name."""
    config = CLIPTextConfig(**_read(folder / name / "config.json"))
    with init_empty_weights():
        return TEXT_ENCODER_CLASSES[name](config)


def _unet(tensors: Tensors, folder: Path) -> dict[str, StoredTensor]:
    config = _read(folder / "unet" / "config.json")
    return single_file_utils.convert_ldm_unet_checkpoint(_under(tensors, [UNET_PREFIX]), config)


def _vae(tensors: Tensors, folder: Path) -> dict[str, StoredTensor]:
    config = _read(folder / "vae" / "config.json")
    found = _under(tensors, VAE_PREFIXES) or {f"{VAE_PREFIXES[0]}{name}": tensor for name, tensor in tensors.items()}
    known = (f"{prefix}{part}" for prefix in VAE_PREFIXES for part in ("encoder.", "decoder.", "quant_", "post_quant_"))
    return single_file_utils.convert_ldm_vae_checkpoint(_under(found, known), config)


def _text_encoder(encoder: nn.Module, tensors: Tensors, prefix: str) -> dict[str, StoredTensor]:
    found = _under(tensors, [prefix])
    if prefix.endswith("transformer."):
        converted = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    else:
        converted = single_file_utils.convert_open_clip_checkpoint(encoder, found, prefix=prefix)
    return _with_levels(encoder, converted)


def _with_levels(encoder: nn.Module, converted: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    # transformers 5 has lost the level `text_model` in one of the two classes.
    if hasattr(encoder, "text_model"):
        return {_with_level(name): tensor for name, tensor in converted.items()}
    return {name.removeprefix("text_model."): tensor for name, tensor in converted.items() if "projection" not in name}


def _with_level(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def _under(tensors: Tensors, prefixes: Iterable[str]) -> dict[str, StoredTensor]:
    wanted = tuple(prefixes)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(wanted)}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
