"""What a LoRA file is, from its header alone: fast, and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.files import file_sha256
from trainer.lora_files.architecture import TITLES, Architecture
from trainer.lora_files.header import TensorEntry, read_entries, read_scalars
from trainer.lora_files.layers import Layer, read_layers
from trainer.lora_files.metadata import CONFIG_KEY
from trainer.lora_files.names import UNET_PREFIX

_TITLE_KEYS = ("modelspec.title", "ss_output_name")
_MAX_GUESSED_WORDS = 3
_COMMON_SHARE = 0.8


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file in words and numbers.

    Attributes:
        kinds: of its layers: "lora", "loha", "dora", …
        ranks, alphas: the different ones, ascending.
        architecture: what it was made for; `family` is its title.
        base_model: the base model's name, or empty.
        trigger_words: as the author gave them, else guessed from the commonest tags (`trigger_words_are_guessed`).
        dtype: "fp16", "bf16", "fp32"…, or "mixed".
        embeddings: names of bundled textual-inversion embeddings.
        unread: tensors that are nothing known, and are left out.
        sha256: of the whole file; empty where it was not asked for.
        has_settings: whether "train again with these settings" is possible.
        num_vectors: the most vectors that one of its embeddings has; 0 without any.
    """

    path: Path
    title: str
    layout: str
    kinds: tuple[str, ...]
    architecture: Architecture
    base_model: str
    description: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    dtype: str
    num_modules: int
    num_parameters: int
    has_unet: bool
    has_text_encoder: bool
    has_convolutions: bool
    embeddings: tuple[str, ...]
    unread: tuple[str, ...]
    trigger_words: tuple[str, ...]
    trigger_words_are_guessed: bool
    steps: int
    size_bytes: int
    sha256: str
    has_settings: bool
    metadata: Mapping[str, str]
    num_vectors: int = 0

    @property
    def is_embedding(self) -> bool:
        """Whether it is an embedding alone, without any layer."""
        return self.kinds == ("embedding",)

    @property
    def family(self) -> str:
        """The architecture in words."""
        return TITLES[self.architecture]


def inspect_lora(path: Path, *, with_hash: bool = True) -> LoraInfo:
    """Read a LoRA's header.

    Args:
        path: the file.
        with_hash: compute `sha256`, which reads the whole file.

    Raises: LoraFileError: the file is no LoRA that Inkwash can read.
    """
    metadata, entries = read_entries(path)
    table = read_layers(metadata, {key: (entry.dtype, entry.shape) for key, entry in entries.items()}, str(path))
    facts = [layer.facts for layer in table.layers.values() if layer.facts]
    words, are_guessed = trigger_words(metadata, sorted(table.embeddings))
    return LoraInfo(
        path=path,
        title=next((metadata[key] for key in _TITLE_KEYS if metadata.get(key)), path.stem),
        layout=table.layout,
        kinds=tuple(sorted({_kind(layer) for layer in table.layers.values()})),
        architecture=table.architecture,
        base_model=metadata.get("ss_sd_model_name", ""),
        description=metadata.get("modelspec.description", ""),
        ranks=tuple(sorted({fact.rank for fact in facts if fact.rank is not None})),
        alphas=_alphas(path, entries, table.layers),
        dtype=_dtype(entries, table.layers),
        num_modules=len(table.layers),
        num_parameters=sum(math.prod(entry.shape) for key, entry in entries.items() if not key.endswith("alpha")),
        has_unet=any(name.startswith(UNET_PREFIX) for name in table.layers),
        has_text_encoder=any(not name.startswith(UNET_PREFIX) for name in table.layers),
        has_convolutions=any(fact.is_convolution for fact in facts),
        embeddings=tuple(sorted(table.embeddings)),
        unread=table.unread,
        trigger_words=words,
        trigger_words_are_guessed=are_guessed,
        steps=_whole_number(metadata.get("ss_steps", "")),
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path) if with_hash else "",
        has_settings=CONFIG_KEY in metadata,
        metadata=metadata,
        num_vectors=max(
            (
                shape[-2] if len(shape := entries[key].shape) > 1 else 1
                for p in table.embeddings.values()
                for key in p.values()
            ),
            default=0,
        ),
    )


def describe_lora(path: Path) -> dict[str, Any]:
    """`inspect_lora` as plain data for `inkwash lora inspect` and `--json`. Texts of the file come without control characters.

    Raises: LoraFileError: as `inspect_lora`.
    """
    info = inspect_lora(path)
    return {
        "file": str(info.path),
        "title": _plain(info.title),
        "family": info.family,
        "base_model": _plain(info.base_model),
        "trigger_words": [_plain(word) for word in info.trigger_words],
        "trigger_words_are_guessed": info.trigger_words_are_guessed,
        "description": _plain(info.description),
        "kinds": list(info.kinds),
        "ranks": list(info.ranks),
        "alphas": list(info.alphas),
        "layers": info.num_modules,
        "parameters": info.num_parameters,
        "changes_unet": info.has_unet,
        "changes_text_encoder": info.has_text_encoder,
        "changes_convolutions": info.has_convolutions,
        "bundled_embeddings": [_plain(name) for name in info.embeddings],
        "embedding_vectors": info.num_vectors,
        "unknown_tensors": [_plain(key) for key in info.unread],
        "number_format": info.dtype,
        "layout": info.layout,
        "steps": info.steps,
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
        "data_sha256": _plain(info.metadata.get("sshs_model_hash", "")),
        "has_training_settings": info.has_settings,
        "metadata": {_plain(key): _plain(value) for key, value in info.metadata.items()},
    }


def _plain(text: str) -> str:
    # Escape sequences in a stranger's file must not reach a terminal.
    return "".join(char if char.isprintable() else " " for char in text)


def trigger_words(metadata: Mapping[str, str], learned: Sequence[str] = ()) -> tuple[tuple[str, ...], bool]:
    """The words that call up what was learned, and whether they are only a guess from the tags.

    Words that the author does not name, but that the file has vectors for (`learned`), are no guess.
    """
    phrase = metadata.get("modelspec.trigger_phrase", "")
    if phrase.strip():
        return tuple(word.strip() for word in phrase.split(",") if word.strip()), False
    if learned:
        return tuple(learned), False
    counts = tag_counts(metadata)
    most = max(counts.values(), default=0)
    common = [tag for tag, count in counts.items() if count >= _COMMON_SHARE * most]
    return tuple(sorted(common, key=lambda tag: -counts[tag])[:_MAX_GUESSED_WORDS]), bool(common)


def tag_counts(metadata: Mapping[str, str]) -> dict[str, int]:
    """How often each tag stands in the captions, over all data sets; empty where the file does not say, or says nonsense."""
    try:
        frequency = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return {}
    total: dict[str, int] = {}
    for counts in frequency.values() if isinstance(frequency, dict) else ():
        for tag, count in counts.items() if isinstance(counts, dict) else ():
            if isinstance(count, int) and tag.strip():
                total[tag.strip()] = total.get(tag.strip(), 0) + count
    return total


def _kind(layer: Layer) -> str:
    return layer.facts.kind if layer.facts else "bias"


def _alphas(path: Path, entries: dict[str, TensorEntry], layers: Mapping[str, Layer]) -> tuple[float, ...]:
    keys = [
        layer.keys["alpha"]
        for layer in layers.values()
        if "alpha" in layer.keys and layer.facts and layer.facts.rank is not None
    ]
    return tuple(sorted(set(read_scalars(path, entries, keys).values())))


def _dtype(entries: Mapping[str, TensorEntry], layers: Mapping[str, Layer]) -> str:
    names = {
        entries[key].dtype
        for layer in layers.values()
        for part, key in layer.keys.items()
        if part not in ("alpha", "on_input")
    }
    if len(names) != 1:
        return "mixed"
    name = names.pop()
    return {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64"}.get(name, name)


def _whole_number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 12 else 0
