"""Prompts to chunks of tokens and on to hidden states, for every family with CLIP text encoders.

A CLIP encoder takes 77 tokens with the marks of start and end. Longer prompts are cut into chunks of 75, each is
encoded on its own, and the UNet attends to the states of all of them, as A1111 and its descendants do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer.prompts import Sections, parse_weights, plain

CHUNK_TOKENS = 75
"""Tokens of a CLIP chunk without the marks of start and end."""
_MEAN_LIMITS = (0.5, 2.0)


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
    """

    ids: Tensor
    weights: Tensor

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


def to_chunks(tokenizer: CLIPTokenizer, length: int, prompts: Sequence[str], options: PromptOptions) -> Chunks:
    """Tokens of prompts in chunks of `length`, each with its marks of start and end, filled up as the tokenizer does."""
    read = parse_weights if options.has_weights else plain
    rows = [_row(tokenizer, length - 2, read(prompt), options.max_chunks) for prompt in prompts]
    count = max(len(row) for row in rows)
    start, end = cast(int, tokenizer.bos_token_id), cast(int, tokenizer.eos_token_id)
    fill = end if tokenizer.pad_token_id is None else cast(int, tokenizer.pad_token_id)
    ids = torch.full((len(rows), count, length), fill, dtype=torch.int64)
    weights = torch.ones((len(rows), count, length))
    ids[:, :, 0] = start
    for row_index, row in enumerate(rows):
        for index in range(count):
            tokens, strengths = row[index] if index < len(row) else ([], [])
            size = len(tokens)
            ids[row_index, index, 1 : size + 1] = torch.tensor(tokens, dtype=torch.int64)
            ids[row_index, index, size + 1] = end
            weights[row_index, index, 1 : size + 1] = torch.tensor(strengths)
    return Chunks(ids, weights)


_Row = list[tuple[list[int], list[float]]]


def _row(tokenizer: CLIPTokenizer, size: int, sections: Sections, max_chunks: int) -> _Row:
    """Tokens and weights of each chunk of a prompt."""
    row: _Row = []
    for section in sections:
        tokens: list[int] = []
        strengths: list[float] = []
        for segment in section:
            found = tokenizer(segment.text, add_special_tokens=False).input_ids
            tokens += found
            strengths += [segment.weight] * len(found)
        for begin in range(0, max(1, len(tokens)), size):
            row.append((tokens[begin : begin + size], strengths[begin : begin + size]))
    return row[:max_chunks] if max_chunks else row


def encode_chunks(encoder: nn.Module, chunks: Chunks, read: Callable[[Any], Tensor], *, hidden: bool) -> Encoded:
    """Run a text encoder over all chunks.

    Args:
        encoder: a CLIP text model.
        chunks: see `to_chunks`.
        read: takes the states out of the model's output.
        hidden: whether `read` needs the states of all layers.
    """
    count, chunks_each, length = chunks.ids.shape
    device = next(encoder.parameters()).device
    ids = chunks.ids.flatten(0, 1).to(device)
    output = encoder(ids, output_hidden_states=True) if hidden else encoder(ids)
    states = read(output)
    if chunks.is_weighted:
        states = emphasise(states, chunks.weights.flatten(0, 1).to(device))
    pooled = getattr(output, "text_embeds", None)
    if pooled is not None and chunks_each > 1:
        pooled = pooled.unflatten(0, (count, chunks_each))[:, 0]
    return Encoded(states.reshape(count, chunks_each * length, -1), pooled)


@dataclass(frozen=True)
class Encoded:
    """States `(batch, tokens, width)`, and of encoders with a projection the first chunk's vector `(batch, width)`."""

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
