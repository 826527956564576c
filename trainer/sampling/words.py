"""Learned words out of files, for a model in memory: bundled in LoRAs, and embeddings alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainer.errors import Finding, LoraFileError
from trainer.library import LibraryEntry
from trainer.lora_files.embedding_info import is_embedding
from trainer.lora_files.embeddings import Embedding, embedding_of, read_embedding
from trainer.lora_files.header import read_header
from trainer.lora_files.reading import LoraFile
from trainer.models.components import Components
from trainer.models.words import LearnedWord, cross_attentions, token_table


def bundled_words(lora: LoraFile, components: Components) -> tuple[LearnedWord, ...]:
    """The learned words in a LoRA file, on the model's device. Raises LoraFileError for one that does not fit the model."""
    found = [embedding_of(name, tensors, str(lora.path)) for name, tensors in lora.embeddings.items()]
    return tuple(_word(embedding, components, str(lora.path)) for embedding in found)


def embedding_word(path: Path, components: Components) -> LearnedWord | None:
    """The learned word of an embedding file, named as the file, or None where the file is something else.

    Raises: LoraFileError: it cannot be read, or is for another model.
    """
    if not is_embedding(read_header(path)[1]):
        return None
    found = read_embedding(path)
    return _word(Embedding(path.stem, found.vectors, found.layers), components, str(path))


def library_words(
    entries: Iterable[LibraryEntry], components: Components
) -> tuple[list[LearnedWord], list[LoraFileError]]:
    """The words of embeddings in the library, and why others cannot be used with this model."""
    words: list[LearnedWord] = []
    unfit: list[LoraFileError] = []
    for entry in entries:
        try:
            word = embedding_word(entry.path, components)
        except LoraFileError as error:
            unfit.append(error)
            continue
        if word is not None:
            words.append(word)
    return words, unfit


def _word(embedding: Embedding, components: Components, where: str) -> LearnedWord:
    vectors = embedding.trained
    findings: list[Finding] = []
    for part, encoder in components.text_encoders.items():
        width = token_table(encoder).embedding_dim
        if part not in vectors:
            findings.append(Finding(part, "the file has no vectors for it"))
        elif vectors[part].shape[-1] != width:
            findings.append(
                Finding(part, f"vectors of {vectors[part].shape[-1]} numbers, and the model's have {width}")
            )
    findings += [Finding(part, "the model has none") for part in vectors if part not in components.text_encoders]
    layers = len(cross_attentions(components.unet))
    findings += [
        Finding(part, f"vectors for {tensor.shape[0]} layers, and the model has {layers}")
        for part, tensor in vectors.items()
        if tensor.ndim == 3 and tensor.shape[0] != layers
    ]
    if findings:
        raise LoraFileError(
            f"The embedding '{embedding.name}' was made for another model than '{components.name}'.",
            where=where,
            fix="Choose the base model that it was made for, or leave it out.",
            findings=findings,
        )
    return LearnedWord(embedding.name, {part: tensor.to(components.device) for part, tensor in vectors.items()})
