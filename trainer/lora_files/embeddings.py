"""Textual-inversion embeddings: as files of all usual forms, and bundled in LoRA files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.files import write_atomically
from trainer.lora_files.embedding_info import PER_LAYER
from trainer.lora_files.header import read_header

_FIRST = ("clip_l", "emb_params", "emp_params")


@dataclass(frozen=True)
class Embedding:
    """New words of a text encoder.

    Attributes:
        name: the trigger word as the file says it, else the file's name.
        vectors: `(vectors, width)` for each text encoder: "text_encoder" and, of SDXL, "text_encoder_2".
        layers: where each cross-attention layer has its own (P+): `(layers, vectors, width)` for each text encoder, of which
            `vectors` is the mean.
    """

    name: str
    vectors: Mapping[str, Tensor]
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shaped = [*((each, 2) for each in self.vectors.values()), *((each, 3) for each in self.layers.values())]
        for vectors, ndim in shaped:
            if vectors.ndim != ndim or 0 in vectors.shape or not torch.isfinite(vectors.float()).all():
                raise LoraFileError(f"The embedding '{self.name}' has vectors of no use, {tuple(vectors.shape)}.")

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """The vectors as they were learned: those of each layer, or the same for all."""
        return self.layers or self.vectors

    def mean(self) -> Embedding:
        """The same without vectors for each layer: what other programs can read of it."""
        return Embedding(self.name, self.vectors)


def embedding_from(name: str, trained: Mapping[str, Tensor]) -> Embedding:
    """An embedding of vectors by text encoder, `(vectors, width)`, or `(layers, vectors, width)` for each layer."""
    layers = {part: vectors for part, vectors in trained.items() if vectors.ndim == 3}
    return Embedding(name, {part: v.mean(0) if v.ndim == 3 else v for part, v in trained.items()}, layers)


def read_embedding(path: Path) -> Embedding:
    """Read an embedding: `.safetensors` of kohya, OneTrainer, diffusers and SDXL's pair, or A1111's `.pt`.

    Pickles are loaded with torch's `weights_only`, which runs nothing.

    Raises: LoraFileError: it is no embedding.
    """
    if path.suffix.lower() == ".safetensors":
        read_header(path)
        try:
            tensors: dict[str, Any] = dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise LoraFileError(f"The file cannot be read ({error}).", where=str(path)) from error
        return embedding_of(path.stem, tensors, str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise LoraFileError(
            "The file cannot be read as an embedding.", where=str(path), fix="Get the .safetensors version."
        ) from error
    return embedding_of(path.stem, content if isinstance(content, dict) else {}, str(path))


def embedding_of(name: str, content: Mapping[str, Any], where: str) -> Embedding:
    """The embedding in a file's content. Output embeddings, which only OneTrainer uses, are left out.

    Raises: LoraFileError: there is none.
    """
    if isinstance(content.get("string_to_param"), Mapping):
        values = [value for value in content["string_to_param"].values() if isinstance(value, Tensor)]
        return (
            Embedding(str(content.get("name") or name), {"text_encoder": _rows(values[0])}) if values else _none(where)
        )
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and not key.endswith("_out")}
    layers = {key: value for key, value in tensors.items() if key.startswith(PER_LAYER)}
    if layers:
        return embedding_from(name, {key.removeprefix(PER_LAYER): value.detach() for key, value in layers.items()})
    bundled = {key.removeprefix("string_to_param."): value for key, value in tensors.items()}
    first = next((bundled[key] for key in _FIRST if key in bundled), None)
    if first is None and "clip_g" not in bundled and len(bundled) == 1:
        # diffusers: the key is the word; `*` is A1111's placeholder.
        word, first = next(iter(bundled.items()))
        name = name if word == "*" else word
    found = {"text_encoder": first, "text_encoder_2": bundled.get("clip_g")}
    vectors = {encoder: _rows(tensor) for encoder, tensor in found.items() if tensor is not None}
    return Embedding(name, vectors) if vectors else _none(where)


def write_embedding(path: Path, embedding: Embedding, metadata: Mapping[str, str] | None = None) -> None:
    """Write an embedding as every tool reads it: `emb_params`, or SDXL's `clip_l` and `clip_g`.

    One with vectors for each layer is written in our own form, for there is no other; nothing else may stand beside it in a
    file, as A1111 takes one tensor only.
    """
    tensors = _own(_per_layer(embedding) or _ordinary(embedding, "emb_params"))

    def write(temporary: Path) -> None:
        temporary.write_bytes(save(tensors, dict(metadata) if metadata else None))
        written = load_file(temporary)
        if written.keys() != tensors.keys() or any(not torch.equal(written[key], tensors[key]) for key in tensors):
            raise LoraFileError("The saved embedding is not what it should be.", where=str(path), fix="Check the disk.")

    write_atomically(path, write, "the embedding")


def bundled_tensors(embedding: Embedding) -> dict[str, Tensor]:
    """The tensors of an embedding inside a LoRA file, by key: as A1111 reads them, and vectors for each layer beside their mean.

    Form: https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/13568.
    """
    tensors = _own({**_ordinary(embedding, "string_to_param.*"), **_per_layer(embedding)})
    # A dot would end the name.
    return {f"bundle_emb.{embedding.name.replace('.', '_')}.{key}": tensor for key, tensor in tensors.items()}


def _ordinary(embedding: Embedding, only: str) -> dict[str, Tensor]:
    first, second = embedding.vectors.get("text_encoder"), embedding.vectors.get("text_encoder_2")
    pair = {only: first} if second is None else {"clip_l": first, "clip_g": second}
    return {key: tensor for key, tensor in pair.items() if tensor is not None}


def _per_layer(embedding: Embedding) -> dict[str, Tensor]:
    return {f"{PER_LAYER}{part}": vectors for part, vectors in embedding.layers.items()}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float32 and main memory: a few numbers, which need no rounding; the writer refuses shared storage."""
    return {key: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for key, tensor in tensors.items()}


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().unsqueeze(0) if tensor.ndim == 1 else tensor.detach()


def _none(where: str) -> Embedding:
    raise LoraFileError("The file holds no embedding that Inkwash knows.", where=where, fix="Use another file.")
