"""Textual-inversion embeddings: as files of all usual forms, and bundled in LoRA files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.files import write_bytes
from trainer.lora_files.header import read_header

_FIRST = ("clip_l", "emb_params", "emp_params")


@dataclass(frozen=True)
class Embedding:
    """New words of a text encoder.

    Attributes:
        name: the trigger word as the file says it, else the file's name.
        vectors: `(vectors, width)` for each text encoder: "text_encoder" and, of SDXL, "text_encoder_2".
    """

    name: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for vectors in self.vectors.values():
            if vectors.ndim != 2 or 0 in vectors.shape or not torch.isfinite(vectors.float()).all():
                raise LoraFileError(f"The embedding '{self.name}' has vectors of no use, {tuple(vectors.shape)}.")


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
    bundled = {key.removeprefix("string_to_param."): value for key, value in tensors.items()}
    first = next((bundled[key] for key in _FIRST if key in bundled), None)
    if first is None and "clip_g" not in bundled and len(bundled) == 1:
        # diffusers: the key is the word; `*` is A1111's placeholder.
        word, first = next(iter(bundled.items()))
        name = name if word == "*" else word
    found = {"text_encoder": first, "text_encoder_2": bundled.get("clip_g")}
    vectors = {encoder: _rows(tensor) for encoder, tensor in found.items() if tensor is not None}
    return Embedding(name, vectors) if vectors else _none(where)


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Write an embedding as every tool reads it: `emb_params`, or SDXL's `clip_l` and `clip_g`."""
    second = embedding.vectors.get("text_encoder_2")
    first = embedding.vectors.get("text_encoder")
    pair = {"emb_params": first} if second is None else {"clip_l": first, "clip_g": second}
    tensors = {key: tensor.contiguous().clone() for key, tensor in pair.items() if tensor is not None}
    write_bytes(path, save(tensors), "the embedding")


def _rows(tensor: Tensor) -> Tensor:
    return tensor.detach().unsqueeze(0) if tensor.ndim == 1 else tensor.detach()


def _none(where: str) -> Embedding:
    raise LoraFileError("The file holds no embedding that Inkwash knows.", where=where, fix="Use another file.")
