"""Textual-inversion embeddings by their headers alone: which file is one, and what it is. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from trainer.files import file_sha256
from trainer.lora_files.architecture import Architecture, architecture_from_metadata
from trainer.lora_files.header import read_entries
from trainer.lora_files.inspect import LoraInfo
from trainer.lora_files.metadata import CONFIG_KEY

PER_LAYER = "inkwash.per_layer."
"""What the names of vectors for each cross-attention layer begin with; the text encoder follows. Our own form: there is no other."""
_KEYS = ("emb_params", "emp_params", "clip_l", "clip_g", "*", "string_to_param.*")
_MAX_TENSORS = 4
_WIDTHS: dict[int, Architecture] = {768: "sd1", 1024: "sd2"}
_DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


def is_embedding(header: Mapping[str, tuple[str, tuple[int, ...]]]) -> bool:
    """Whether the names in a header (dtype and shape by key) are those of an embedding.

    diffusers names the only tensor by the word, which has no dot in it.
    """
    if not 0 < len(header) <= _MAX_TENSORS:
        return False
    if all(key.removesuffix("_out") in _KEYS or key.startswith(PER_LAYER) for key in header):
        return True
    (key, (_, shape)), *others = header.items()
    return not others and "." not in key and len(shape) in (1, 2) and shape[-1] in (*_WIDTHS, 1280)


def inspect_embedding(path: Path, *, with_hash: bool = True) -> LoraInfo | None:
    """An embedding file as the library lists it; None where the file is something else.

    Raises: LoraFileError: the header cannot be read.
    """
    metadata, entries = read_entries(path)
    if not is_embedding({key: (entry.dtype, entry.shape) for key, entry in entries.items()}):
        return None
    own = [entry for key, entry in entries.items() if not key.endswith("_out")]
    dtypes = {entry.dtype for entry in own}
    return LoraInfo(
        path=path,
        title=path.stem,
        layout="embedding",
        kinds=("embedding",),
        architecture=_architecture(metadata, {key: entry.shape for key, entry in entries.items()}),
        base_model=metadata.get("ss_sd_model_name", ""),
        description=metadata.get("modelspec.description", ""),
        ranks=(),
        alphas=(),
        dtype=_DTYPES.get(dtypes.pop(), "mixed") if len(dtypes) == 1 else "mixed",
        num_modules=0,
        num_parameters=sum(math.prod(entry.shape) for entry in own),
        has_unet=False,
        has_text_encoder=False,
        has_convolutions=False,
        embeddings=(path.stem,),
        unread=(),
        # As in every program: the file's name is the word.
        trigger_words=(path.stem,),
        trigger_words_are_guessed=False,
        steps=int(metadata["ss_steps"]) if metadata.get("ss_steps", "").isdigit() else 0,
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path) if with_hash else "",
        has_settings=CONFIG_KEY in metadata,
        metadata=metadata,
        num_vectors=max(num_vectors(entry.shape) for entry in own),
    )


def num_vectors(shape: tuple[int, ...]) -> int:
    """How many tokens a tensor of an embedding stands for."""
    return shape[-2] if len(shape) > 1 else 1


def _architecture(metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    said = architecture_from_metadata(metadata)
    if said != "unknown":
        return said
    if "clip_g" in shapes or f"{PER_LAYER}text_encoder_2" in shapes:
        return "sdxl"
    return _WIDTHS.get(next(iter(shapes.values()))[-1], "unknown")
