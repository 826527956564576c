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
        damaged: layers with NaN or infinite numbers that were left out, where the reader was told to go on.
    """

    path: Path
    modules: dict[str, AdapterModule]
    metadata: dict[str, str] = field(default_factory=dict)
    layout: str = "kohya"
    lacks_alpha: bool = False
    architecture: Architecture = "unknown"
    embeddings: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def read_lora(path: Path, *, refuse_damaged: bool = True) -> LoraFile:
    """Read a LoRA of any kind and layout.

    Tensors keep their number format; fp8 becomes fp16, which holds it exactly.

    Args:
        path: the file.
        refuse_damaged: off to look into a file that holds NaN or Inf: such layers are left out and named.

    Raises: LoraFileError: the file cannot be read, is no LoRA for these models, lacks a part, or holds NaN, Inf or a
        layer of rank 0.
    """
    metadata, header = read_header(path)
    where = str(path)
    table = read_layers(metadata, header, where)
    tensors = _load(path, where)
    broken = _not_finite(tensors, _numbers_without_effect(table))
    if broken and refuse_damaged:
        raise _damaged(broken, len(tensors), where)
    damaged = tuple(name for name, layer in table.layers.items() if broken & set(layer.keys.values()))
    surroundings = _surroundings(path, metadata, table, where)
    modules: dict[str, AdapterModule] = {}
    lacks_alpha = False
    for name, layer in table.layers.items():
        if name in damaged:
            continue
        modules |= _modules(name, layer, tensors, surroundings, where)
        has_scale = layer.facts is not None and layer.facts.rank is not None
        lacks_alpha = lacks_alpha or (has_scale and "alpha" not in layer.keys and name not in surroundings.alphas)
    embeddings = {name: {part: tensors[key] for part, key in keys.items()} for name, keys in table.embeddings.items()}
    return LoraFile(
        path, modules, metadata, table.layout, lacks_alpha, table.architecture, embeddings, table.unread, damaged
    )


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


def _not_finite(tensors: Mapping[str, Tensor], exempt: set[str]) -> set[str]:
    # The sum is NaN or Inf if any element is; float64 cannot overflow here.
    return {
        key
        for key, tensor in tensors.items()
        if key not in exempt and not torch.isfinite(tensor.sum(dtype=torch.float64))
    }


def _damaged(broken: set[str], total: int, where: str) -> LoraFileError:
    return LoraFileError(
        f"The LoRA holds NaN or infinite numbers in {len(broken)} of {total} tensors: its training failed.",
        where=where,
        fix="Use an earlier version of it, or train again with a lower learning rate.",
        findings=[Finding(key, "not finite") for key in sorted(broken)],
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
