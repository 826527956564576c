"""What a LoRA file is, from its header alone: fast, and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import LoraFileError
from trainer.files import file_sha256
from trainer.lora_files.architecture import TITLES, Architecture, architecture_of
from trainer.lora_files.formats import split_keys
from trainer.lora_files.formats.kohya import TEXT_ENCODER_PREFIX, UNET_PREFIX
from trainer.lora_files.formats.parts import Part
from trainer.lora_files.header import TensorEntry, read_entries, read_scalars
from trainer.lora_files.metadata import CONFIG_KEY

_TITLE_KEYS = ("modelspec.title", "ss_output_name")
_MAX_GUESSED_WORDS = 3
_COMMON_SHARE = 0.8


@dataclass(frozen=True)
class LoraInfo:
    """A LoRA file in words and numbers.

    Attributes:
        ranks, alphas: the different ones, ascending.
        architecture: what it was made for; `family` is its title.
        base_model: the base model's name, or empty.
        trigger_words: as the author gave them, else guessed from the commonest tags (`trigger_words_are_guessed`).
        dtype: "fp16", "bf16", "fp32"…, or "mixed".
        sha256: of the whole file; empty where it was not asked for.
        has_settings: whether "train again with these settings" is possible.
    """

    path: Path
    title: str
    layout: str
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
    trigger_words: tuple[str, ...]
    trigger_words_are_guessed: bool
    steps: int
    size_bytes: int
    sha256: str
    has_settings: bool
    metadata: Mapping[str, str]

    @property
    def family(self) -> str:
        """The architecture in words."""
        return TITLES[self.architecture]


def inspect_lora(path: Path, *, with_hash: bool = True) -> LoraInfo:
    """Read a LoRA's header.

    Args:
        path: the file.
        with_hash: compute `sha256`, which reads the whole file.

    Raises: LoraFileError: the file is no plain LoRA or LoCon that Inkwash can read.
    """
    metadata, entries = read_entries(path)
    layout, modules = split_keys(entries, str(path))
    shapes = {name: entries[parts["down"]].shape for name, parts in modules.items()}
    flat = [name for name, shape in shapes.items() if len(shape) not in (2, 4) or 0 in shape]
    if flat:
        raise LoraFileError(f"The layer '{flat[0]}' has a matrix of no use, {shapes[flat[0]]}.", where=str(path))
    words, are_guessed = trigger_words(metadata)
    return LoraInfo(
        path=path,
        title=next((metadata[key] for key in _TITLE_KEYS if metadata.get(key)), path.stem),
        layout=layout,
        architecture=architecture_of(shapes, metadata),
        base_model=metadata.get("ss_sd_model_name", ""),
        description=metadata.get("modelspec.description", ""),
        ranks=tuple(sorted({shape[0] for shape in shapes.values()})),
        alphas=_alphas(path, entries, modules),
        dtype=_dtype({entries[parts["down"]].dtype for parts in modules.values()}),
        num_modules=len(modules),
        num_parameters=sum(math.prod(entry.shape) for key, entry in entries.items() if not key.endswith("alpha")),
        has_unet=any(name.startswith(UNET_PREFIX) for name in modules),
        has_text_encoder=any(name.startswith(TEXT_ENCODER_PREFIX) for name in modules),
        has_convolutions=any(len(shape) == 4 and shape[2:] != (1, 1) for shape in shapes.values()),
        trigger_words=words,
        trigger_words_are_guessed=are_guessed,
        steps=_whole_number(metadata.get("ss_steps", "")),
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path) if with_hash else "",
        has_settings=CONFIG_KEY in metadata,
        metadata=metadata,
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
        "ranks": list(info.ranks),
        "alphas": list(info.alphas),
        "layers": info.num_modules,
        "parameters": info.num_parameters,
        "changes_unet": info.has_unet,
        "changes_text_encoder": info.has_text_encoder,
        "changes_convolutions": info.has_convolutions,
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


def trigger_words(metadata: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """The words that call up what was learned, and whether they are only a guess from the tags."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    if phrase.strip():
        return tuple(word.strip() for word in phrase.split(",") if word.strip()), False
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


def _alphas(
    path: Path, entries: dict[str, TensorEntry], modules: Mapping[str, Mapping[Part, str]]
) -> tuple[float, ...]:
    keys = [parts["alpha"] for parts in modules.values() if "alpha" in parts]
    return tuple(sorted(set(read_scalars(path, entries, keys).values())))


def _dtype(names: set[str]) -> str:
    if len(names) != 1:
        return "mixed"
    name = names.pop()
    return {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F64": "fp64"}.get(name, name)


def _whole_number(text: str) -> int:
    return int(text) if text.isdigit() and len(text) < 12 else 0
