"""Prompts to chunks of tokens and on to hidden states, for every family with CLIP text encoders.

A CLIP encoder takes 77 tokens with the marks of start and end. Longer prompts are cut into chunks of 75, each is
encoded on its own, and the UNet attends to the states of all of them, as A1111 and its descendants do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer.models.words import PLACEHOLDER, Vocabulary, spoken
from trainer.prompts import Sections, parse_weights, plain

CHUNK_TOKENS = 75
"""Tokens of a CLIP chunk without the marks of start and end."""
_MEAN_LIMITS = (0.5, 2.0)
NO_WORDS = Vocabulary()


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are read.

    Attributes:
        clip_skip: which of the text encoder's last layers is read; 1 is the last that the family uses.
        max_chunks: chunks beyond it are cut off; 0 keeps all.
        has_weights: whether `(word:1.2)` and BREAK have their meaning, or are plain text.
    """

    clip_skip: int = 1
    max_chunks: int = 0
    has_weights: bool = False


AS_WRITTEN = PromptOptions()
"""All of the prompt, read as plain text, from the family's usual layer."""


@dataclass(frozen=True)
class Chunks:
    """Tokens of a batch of prompts, all with as many chunks as the longest.

    Attributes:
        ids: int64 `(batch, chunks, tokens)`.
        weights: float32, of the same shape; 1 is neutral.
        rows: int64, of the same shape: where a learned word stands, the row of its vector in the vocabulary's table; else -1.
    """

    ids: Tensor
    weights: Tensor
    rows: Tensor

    @property
    def is_weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return bool((self.weights != 1).any())


def encoder_tokens(tokenizer: CLIPTokenizer, encoder: nn.Module) -> int:
    """How many tokens a text encoder takes, with the two marks of start and end."""
    # Tokenizers saved without a length report 1e30.
    return min(tokenizer.model_max_length, text_config(encoder).max_position_embeddings)


def text_config(encoder: nn.Module) -> Any:
    """The configuration of a text encoder."""
    return encoder.config


def count_tokens(tokenizer: CLIPTokenizer, prompt: str) -> int:
    """Tokens of a prompt without the marks of start and end."""
    return len(tokenizer(prompt, add_special_tokens=False).input_ids)


def to_chunks(
    tokenizer: CLIPTokenizer,
    length: int,
    prompts: Sequence[str],
    options: PromptOptions,
    words: Vocabulary = NO_WORDS,
) -> Chunks:
    """Tokens of prompts in chunks of `length`, each with its marks of start and end, filled up as the tokenizer does.

    A learned word takes a place for each of its vectors, which stay in one chunk.
    """
    read = parse_weights if options.has_weights else plain
    rows = [_row(tokenizer, length - 2, read(prompt), options.max_chunks, words) for prompt in prompts]
    count = max(len(row) for row in rows)
    start, end = cast(int, tokenizer.bos_token_id), cast(int, tokenizer.eos_token_id)
    fill = end if tokenizer.pad_token_id is None else cast(int, tokenizer.pad_token_id)
    ids = torch.full((len(rows), count, length), fill, dtype=torch.int64)
    weights = torch.ones((len(rows), count, length))
    ids[:, :, 0] = start
    for row_index, row in enumerate(rows):
        for index in range(count):
            tokens = row[index] if index < len(row) else []
            size = len(tokens)
            ids[row_index, index, 1 : size + 1] = torch.tensor([token for token, _ in tokens], dtype=torch.int64)
            ids[row_index, index, size + 1] = end
            weights[row_index, index, 1 : size + 1] = torch.tensor([weight for _, weight in tokens])
    return Chunks(ids.where(ids >= 0, PLACEHOLDER), weights, (-1 - ids).where(ids < 0, -1))


_Tokens = list[tuple[int, float]]
"""Tokens and their weights; of a learned word -1 - its row."""


def _row(tokenizer: CLIPTokenizer, size: int, sections: Sections, max_chunks: int, words: Vocabulary) -> list[_Tokens]:
    """Tokens and weights of each chunk of a prompt."""
    row: list[_Tokens] = []
    for section in sections:
        chunk: _Tokens = []
        row.append(chunk)
        for segment in section:
            for piece in _pieces(tokenizer, segment.text, words):
                # One that is longer than a chunk is cut all the same.
                for begin in range(0, len(piece), size):
                    part = piece[begin : begin + size]
                    if len(chunk) + len(part) > size:
                        chunk = []
                        row.append(chunk)
                    chunk += [(token, segment.weight) for token in part]
    return row[:max_chunks] if max_chunks else row


def _pieces(tokenizer: CLIPTokenizer, text: str, words: Vocabulary) -> Iterator[list[int]]:
    """What is not divided: tokens one by one, and the rows of a learned word together, as -1 - row."""
    for part in words.split(text):
        if isinstance(part, str):
            yield from ([token] for token in tokenizer(part, add_special_tokens=False).input_ids)
        else:
            yield [-1 - row for row in part]


def encode_chunks(
    encoder: nn.Module,
    chunks: Chunks,
    read: Callable[[Any], Tensor],
    *,
    hidden: bool,
    words: Vocabulary = NO_WORDS,
) -> Encoded:
    """Run a text encoder over all chunks.

    Args:
        encoder: a CLIP text model.
        chunks: see `to_chunks`.
        read: takes the states out of the model's output.
        hidden: whether `read` needs the states of all layers.
        words: the learned words that `to_chunks` was given.
    """
    count, chunks_each, length = chunks.ids.shape
    device = next(encoder.parameters()).device
    layers = words.layers(chunks.rows)
    ids, rows = (each.flatten(0, 1).repeat(layers, 1).to(device) for each in (chunks.ids, chunks.rows))
    with spoken(encoder, words, rows, layers):
        output = encoder(ids, output_hidden_states=True) if hidden else encoder(ids)
    states = read(output)
    if chunks.is_weighted:
        states = emphasise(states, chunks.weights.flatten(0, 1).repeat(layers, 1).to(device))
    states = states.reshape(layers, count, chunks_each * length, -1)
    pooled = getattr(output, "text_embeds", None)
    if pooled is not None and len(pooled) > count:
        pooled = pooled.unflatten(0, (layers, count, chunks_each))[:, :, 0].mean(0)
    return Encoded(states[0] if layers == 1 else states.transpose(0, 1), pooled)


@dataclass(frozen=True)
class Encoded:
    """States and, of encoders with a projection, the first chunk's vector `(batch, width)`.

    States are `(batch, tokens, width)`, or `(batch, layers, tokens, width)` where a learned word has vectors for each
    cross-attention layer; the vector is then the mean over these.
    """

    states: Tensor
    pooled: Tensor | None


def emphasise(states: Tensor, weights: Tensor) -> Tensor:
    """Multiply the states of each token, then bring each chunk's mean back to what it was, as A1111 does.

    The mean is a divisor that may come near 0; where it would change by more than a factor of two it is left alone.

    Args:
        states: `(chunks, tokens, width)`.
        weights: `(chunks, tokens)`; chunks of ones come out unchanged.
    """
    scaled = states * weights[..., None].to(states.dtype)
    factor = states.float().mean((1, 2)) / scaled.float().mean((1, 2))
    low, high = _MEAN_LIMITS
    factor = torch.where((factor > low) & (factor < high), factor, 1.0)
    touched = (weights != 1).any(1)
    return torch.where(touched[:, None, None], scaled * factor[:, None, None].to(states.dtype), states)
