"""What a LoRA file's header says of each layer: name, kind, sizes, keys. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import LoraFileError
from trainer.lora_files.architecture import Architecture, architecture_of, settled_names
from trainer.lora_files.formats import split_keys
from trainer.lora_files.formats.parts import Part
from trainer.lora_files.kinds import BIAS_PARTS, ModuleFacts, module_facts

_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# Numbers, not matrices: other programs write whole numbers here.
_ANY_DTYPE = ("alpha", "on_input")


@dataclass(frozen=True)
class Layer:
    """A layer of a file.

    Attributes:
        facts: the kind of change of its weight; None where only its bias is changed.
        keys: the key of each part, the bias's among them.
    """

    facts: ModuleFacts | None
    keys: Mapping[Part, str]


@dataclass(frozen=True)
class LayerTable:
    """All layers of a file, by their canonical kohya names.

    Attributes:
        layout: the name of the layout that most keys have.
        architecture: what the LoRA was made for.
        embeddings: for each bundled embedding the key of each of its parts.
        unread: keys that are nothing known.
    """

    layout: str
    architecture: Architecture
    layers: Mapping[str, Layer]
    embeddings: Mapping[str, Mapping[str, str]]
    unread: tuple[str, ...]


def read_layers(
    metadata: Mapping[str, str], header: Mapping[str, tuple[str, tuple[int, ...]]], where: str
) -> LayerTable:
    """Sort a header's tensors (dtype and shape by key) into layers.

    Raises: LoraFileError: the file is no LoRA, or the parts of a layer do not go together.
    """
    split = split_keys(header, where)
    layers = {name: _layer(name, keys, header, where) for name, keys in split.modules.items()}
    widths = {name: layer.facts.in_features if layer.facts else 0 for name, layer in layers.items()}
    renamed = settled_names(widths, metadata, split.layout)
    settled: dict[str, Layer] = {}
    for name, layer in layers.items():
        new = renamed.get(name, name)
        if new in settled or (new != name and new in layers):
            raise LoraFileError(f"The layer '{new}' stands twice in the file, under two names.", where=where)
        settled[new] = layer
    architecture = architecture_of({renamed.get(name, name): width for name, width in widths.items()}, metadata)
    return LayerTable(split.layout, architecture, settled, split.embeddings, split.unread)


def _layer(name: str, keys: Mapping[Part, str], header: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> Layer:
    for part, key in keys.items():
        dtype = header[key][0]
        if dtype not in _DTYPES and part not in _ANY_DTYPE:
            raise LoraFileError(f"The tensor '{key}' is stored as {dtype}, which no LoRA is.", where=where)
    weight_parts = [part for part in keys if part not in BIAS_PARTS]
    shapes = {part: header[key][1] for part, key in keys.items()}
    try:
        for part in BIAS_PARTS:
            if part in shapes and 0 in shapes[part]:
                raise ValueError("has an empty bias")
        # An alpha beside nothing but a bias has nothing to scale.
        facts = module_facts(shapes) if set(weight_parts) - {"alpha"} else None
        if facts is None and len(weight_parts) == len(keys):
            raise ValueError("lacks a part: there is only alpha")
    except ValueError as error:
        raise LoraFileError(
            f"The layer '{name}' {error}.", where=where, fix="The file is damaged or incomplete; get it again."
        ) from error
    return Layer(facts, keys)
