"""LoRA files to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import Finding, LoraFileError
from trainer.lora_files.architecture import Architecture
from trainer.lora_files.building import Surroundings, bias_modules, build_module
from trainer.lora_files.formats.settings import alphas_from_metadata, alphas_from_peft, read_peft_config
from trainer.lora_files.header import read_header
from trainer.lora_files.layers import Layer, LayerTable, read_layers
from trainer.lora_files.modules import AdapterModule
from trainer.lora_files.names import BIAS_SUFFIX

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read.

    Attributes:
        modules: by their canonical kohya names (diffusers' block names); "….bias" is the change of a layer's bias.
            `trainer.lora_files.matching` finds the model's layers for them.
        metadata: as in the file.
        layout: the name of the format it was in.
        lacks_alpha: whether the file did not say its alpha, so that the rank was taken (scale 1).
        architecture: what it was made for.
        embeddings: bundled textual-inversion embeddings: their tensors by part, by name.
        unread: keys of tensors that are nothing known, and were left out.
    """

    path: Path
    modules: dict[str, AdapterModule]
    metadata: dict[str, str] = field(default_factory=dict)
    layout: str = "kohya"
    lacks_alpha: bool = False
    architecture: Architecture = "unknown"
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA of any kind and layout.

    Tensors keep their number format; fp8 becomes fp16, which holds it exactly.

    Raises: LoraFileError: the file cannot be read, is no LoRA for these models, lacks a part, or holds NaN, Inf or a
        layer of rank 0.
    """
    metadata, header = read_header(path)
    where = str(path)
    table = read_layers(metadata, header, where)
    tensors = _load(path, where)
    _require_finite(tensors, _numbers_without_effect(table), where)
    surroundings = _surroundings(path, metadata, table, where)
    modules: dict[str, AdapterModule] = {}
    lacks_alpha = False
    for name, layer in table.layers.items():
        modules |= _modules(name, layer, tensors, surroundings, where)
        has_scale = layer.facts is not None and layer.facts.rank is not None
        lacks_alpha = lacks_alpha or (has_scale and "alpha" not in layer.keys and name not in surroundings.alphas)
    embeddings = {name: {part: tensors[key] for part, key in keys.items()} for name, keys in table.embeddings.items()}
    return LoraFile(path, modules, metadata, table.layout, lacks_alpha, table.architecture, embeddings, table.unread)


def _load(path: Path, where: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LoraFileError(f"The file cannot be read ({error}).", where=where, fix="Get the file again.") from error
    return {key: tensor.half() if tensor.dtype in _FLOAT8 else tensor for key, tensor in tensors.items()}


def _numbers_without_effect(table: LayerTable) -> set[str]:
    """Keys of alphas that scale nothing: LyCORIS writes stand-ins there, which are infinite in fp16."""
    return {
        layer.keys["alpha"]
        for layer in table.layers.values()
        if layer.facts and "lokr" in (layer.facts.kind, layer.facts.inner) and layer.facts.rank is None
        if "alpha" in layer.keys
    }


def _require_finite(tensors: Mapping[str, Tensor], exempt: set[str], where: str) -> None:
    # The sum is NaN or Inf if any element is; float64 cannot overflow here.
    broken = [
        key
        for key, tensor in tensors.items()
        if key not in exempt and not torch.isfinite(tensor.sum(dtype=torch.float64))
    ]
    if broken:
        raise LoraFileError(
            f"The LoRA holds NaN or infinite numbers in {len(broken)} of {len(tensors)} tensors: its training failed.",
            where=where,
            fix="Use an earlier version of it, or train again with a lower learning rate.",
            findings=[Finding(key, "not finite") for key in broken],
        )


def _surroundings(path: Path, metadata: Mapping[str, str], table: LayerTable, where: str) -> Surroundings:
    ranks = {
        name: layer.facts.rank for name, layer in table.layers.items() if layer.facts and layer.facts.rank is not None
    }
    if table.layout != "peft":
        return Surroundings(alphas_from_metadata(metadata, ranks, where))
    settings = read_peft_config(path)
    return Surroundings(alphas_from_peft(settings, ranks, where), settings)


def _modules(
    name: str, layer: Layer, tensors: Mapping[str, Tensor], surroundings: Surroundings, where: str
) -> dict[str, AdapterModule]:
    parts = {part: tensors[key] for part, key in layer.keys.items()}
    found: dict[str, AdapterModule] = {}
    try:
        if layer.facts is not None:
            found[name] = build_module(name, layer.facts, parts, surroundings)
        for module in bias_modules(parts):
            found[name + BIAS_SUFFIX] = module
    except (ValueError, TypeError) as error:
        raise LoraFileError(f"The layer '{name}' {error}.", where=where, fix="Get the file again.") from error
    return found
