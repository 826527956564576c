"""Learned words (textual inversion, https://arxiv.org/abs/2208.01618): vectors that stand where a prompt has their name.

The table of tokens is never touched: the vectors are put in place of what it gives, in the forward pass. So the base model
stays what it is to the bit, and no number of a token has to be invented that a model or a file could take for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

PLACEHOLDER = 0
"""The token in whose place a vector stands: any that does not end a text."""
_ORDER = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class LearnedWord:
    """A word with vectors of its own.

    Attributes:
        name: what stands in prompts, in upper or lower case.
        vectors: for each text encoder `(vectors, width)`, or `(layers, vectors, width)` where each cross-attention layer of the
            UNet has its own (P+, https://arxiv.org/abs/2303.09522), in the order of `cross_attentions`.
        is_trained: whether they are being learned.
    """

    name: str
    vectors: Mapping[str, Tensor]
    is_trained: bool = False

    @property
    def layers(self) -> int:
        """For how many cross-attention layers there are vectors; 1 where all share them."""
        return max(tensor.shape[0] if tensor.ndim == 3 else 1 for tensor in self.vectors.values())


class LearnedWords:
    """The learned words of a model in memory, from several places, of which the first that has a name is heard.

    `is_held` keeps the words that are trained as they are, for steps in which only other weights learn.
    """

    _PLACES = ("training", "stack", "library")

    def __init__(self) -> None:
        self._words: dict[str, tuple[LearnedWord, ...]] = {}
        self.is_held = False

    def set(self, place: str, words: Iterable[LearnedWord]) -> None:
        """Make exactly these the words of a place ("training", "stack", "library")."""
        if place not in self._PLACES:
            raise ValueError(f"unknown place: {place!r}")
        self._words[place] = tuple(words)

    @property
    def words(self) -> dict[str, LearnedWord]:
        """The words that are heard, by their names in lower case."""
        found: dict[str, LearnedWord] = {}
        for place in self._PLACES:
            for word in self._words.get(place, ()):
                found.setdefault(word.name.casefold(), word)
        return found

    @property
    def trained(self) -> LearnedWord | None:
        """The word that is being learned."""
        return next((word for word in self._words.get("training", ()) if word.is_trained), None)

    def of(self, part: str) -> Vocabulary:
        """The words as a text encoder reads them."""
        words = {name: word for name, word in self.words.items() if part in word.vectors}
        return Vocabulary(part, words, is_held=self.is_held)


class Vocabulary:
    """The learned words of one text encoder: their names and, in one table, their vectors."""

    def __init__(
        self, part: str = "", words: Mapping[str, LearnedWord] | None = None, *, is_held: bool = False
    ) -> None:
        self._part, self._words, self._is_held = part, dict(words or {}), is_held
        self._rows: dict[str, range] = {}
        end = 0
        for name, word in self._words.items():
            start, end = end, end + word.vectors[part].shape[-2]
            self._rows[name] = range(start, end)

    def __bool__(self) -> bool:
        return bool(self._words)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        names = sorted(self._words, key=len, reverse=True)
        # ComfyUI's `embedding:NAME` is read as NAME.
        return re.compile(rf"(?<!\w)(?:embedding:)?({'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)

    def split(self, text: str) -> Iterator[str | range]:
        """A text in order: what the tokenizer reads, and for each learned word the rows of its vectors."""
        if not self._words:
            yield text
            return
        end = 0
        for match in self._pattern.finditer(text):
            if match.start() > end:
                yield text[end : match.start()]
            yield self._rows[match[1].casefold()]
            end = match.end()
        if end < len(text):
            yield text[end:]

    @property
    def learns(self) -> bool:
        """Whether a word is being learned in this pass."""
        return not self._is_held and torch.is_grad_enabled() and any(w.is_trained for w in self._words.values())

    def layers(self, rows: Tensor) -> int:
        """How many cross-attention layers have texts of their own where these rows are used; 1 where all share one."""
        used = set(rows.unique().tolist())
        return max(
            (self._words[name].layers for name, own in self._rows.items() if not used.isdisjoint(own)), default=1
        )

    def table(self, layers: int) -> Tensor:
        """All vectors, float32 `(layers, rows, width)`; the mean over the layers where one layer is asked for."""
        return torch.cat([self._vectors(word, layers) for word in self._words.values()], 1)

    def _vectors(self, word: LearnedWord, layers: int) -> Tensor:
        vectors = word.vectors[self._part].float()
        vectors = vectors.detach() if self._is_held or not word.is_trained else vectors
        if vectors.ndim == 2:
            return vectors.expand(layers, -1, -1)
        return vectors if layers > 1 else vectors.mean(0, keepdim=True)


@contextmanager
def spoken(encoder: nn.Module, words: Vocabulary, rows: Tensor, layers: int) -> Iterator[None]:
    """For a while the text encoder takes learned vectors in place of those of its table.

    Args:
        encoder: a CLIP text model.
        words: its learned words.
        rows: int64 `(layers * texts, tokens)`, layer by layer: a row of the words' table, or -1 for the encoder's own vector.
        layers: how many layers that is.
    """
    if not words or not (words.learns or (rows >= 0).any()):
        yield
        return
    table = words.table(layers)
    texts = len(rows) // layers
    shift = (torch.arange(layers, device=rows.device) * table.shape[1]).repeat_interleave(texts)[:, None]
    index, is_learned = rows.clamp(min=0) + shift, (rows >= 0)[..., None]

    def exchange(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        learned = functional.embedding(index.to(output.device), table.flatten(0, 1).to(output.device))
        # A text without the word gives the vectors a gradient of zero: every weight has one in every step.
        return torch.where(is_learned.to(output.device), learned.to(output.dtype), output)

    handle = token_table(encoder).register_forward_hook(exchange)
    try:
        yield
    finally:
        handle.remove()


def token_table(encoder: nn.Module) -> nn.Embedding:
    """A text encoder's table of tokens."""
    return next(
        module for name, module in encoder.named_modules()
        if name.endswith("token_embedding") and isinstance(module, nn.Embedding)
    )  # fmt: skip


def cross_attentions(unet: nn.Module) -> list[str]:
    """Paths of the layers that attend to the text, from the input to the output."""
    found = [path for path, _ in unet.named_modules() if path.endswith(".attn2")]
    return sorted(found, key=lambda path: _ORDER.index(path.partition(".")[0]))


_divided: WeakSet[nn.Module] = WeakSet()


def divide_layers(unet: nn.Module) -> None:
    """Let each cross-attention layer take its own of states `(batch, layers, tokens, width)`; others pass as they are.

    It stays on the UNet: gradient checkpointing computes a forward pass again in the backward pass.
    """
    if unet in _divided:
        return
    _divided.add(unet)
    for index, path in enumerate(cross_attentions(unet)):

        def choose(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], layer: int = index) -> Any:
            states = named.get("encoder_hidden_states")
            if isinstance(states, Tensor) and states.ndim == 4:
                named = {**named, "encoder_hidden_states": states[:, layer]}
            return inputs, named

        unet.get_submodule(path).register_forward_pre_hook(choose, with_kwargs=True)


def start_vectors(token_ids: Sequence[int], table: Tensor, count: int) -> Tensor:
    """Vectors to start from, float32 `(count, width)`: those of the tokens, each as often as the others, in their order.

    Args:
        token_ids: of the words to start from; not empty. Where they are more than `count`, some are passed over.
        table: a text encoder's table, `(tokens, width)`.
        count: how many vectors.
    """
    chosen = [token_ids[index * len(token_ids) // count] for index in range(count)]
    return table.detach()[chosen].float()
