"""The learned word in files of its own, beside the LoRA.

lora/NAME.safetensors                    the LoRA, with the word in it; of textual inversion alone the word, and named by it
lora/embeddings/WORD.safetensors         the word as every program reads it
lora/embeddings/WORD-per-layer.safetensors   of P+: the vectors of each layer, which only Inkwash reads; WORD is then their mean
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trainer.files import safe_name
from trainer.lora_files.embeddings import Embedding, embedding_from
from trainer.training.state import TrainParts

_PER_LAYER = "-per-layer"


def learned_embedding(parts: TrainParts) -> Embedding | None:
    """The word as it is now; None where none is learned. Raises LoraFileError for vectors that are not finite."""
    word = parts.components.words.trained
    return None if word is None else embedding_from(word.name, {p: each.detach() for p, each in word.vectors.items()})


def embedding_files(parts: TrainParts, path: Path) -> dict[Path, Literal["trained", "mean"]]:
    """The word's files beside the run's file `path`, and whether each has the vectors as trained or their mean over the layers."""
    adapter = parts.config.adapter
    if not adapter.embedding.num_vectors:
        return {}
    step = path.stem.removeprefix(safe_name(parts.name, "lora")) if adapter.has_lora else ""
    word = safe_name(parts.config.data.trigger_word, "lora") + step if adapter.has_lora else path.stem
    plain = path.parent / "embeddings" / f"{word}.safetensors"
    if adapter.has_lora and adapter.embedding.per_layer:
        return {plain: "mean", plain.with_stem(word + _PER_LAYER): "trained"}
    if adapter.has_lora:
        return {plain: "trained"}
    # The word is the run's file.
    return {plain: "mean", path: "trained"} if adapter.embedding.per_layer else {path: "trained"}


def embedding_path(parts: TrainParts, path: Path) -> Path | None:
    """Where the word lies by itself as it was trained; None where none is learned."""
    return next((file for file, form in embedding_files(parts, path).items() if form == "trained"), None)
