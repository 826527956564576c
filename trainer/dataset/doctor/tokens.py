"""Counting a caption's tokens as the chosen base model does, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from trainer.base_models.listing import find_base
from trainer.errors import ModelFileError
from trainer.paths import ASSETS, DataFolder

_MERGES = ASSETS / "configs" / "clip_tokenizer" / "merges.txt"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own (openai/CLIP, simple_tokenizer.py): words, single digits, runs of other signs.
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def token_counter(base: str, data: DataFolder) -> Callable[[str], int]:
    """A function that counts the tokens of a text, without the marks of start and end.

    Args:
        base: as `trainer.base_models.listing.find_base` takes it.
        data: the data folder.

    Raises: ModelFileError: there is no such model, or its tokenizer cannot be read.
    """
    path = find_base(base, data)
    tokenizer = _of_folder(path / "tokenizer") if path.is_dir() else _bundled()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@cache
def _of_folder(folder: Path) -> Tokenizer:
    try:
        if (folder / "tokenizer.json").is_file():
            model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
            pairs = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
            return _clip(model["vocab"], [(first, second) for first, second in pairs])
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        return _clip(vocabulary, _pairs(line for line in lines if not line.startswith("#version")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise ModelFileError(
            "The tokenizer of the base model cannot be read.", where=str(folder), fix="Download the model again."
        ) from failure


def _pairs(lines: object) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (line.split(" ") for line in lines if line)]  # type: ignore[attr-defined]


@cache
def _bundled() -> Tokenizer:
    """CLIP's own, which single files of every family use: bytes, bytes that end a word, merges, the two marks."""
    merges = _pairs(_MERGES.read_text(encoding="utf-8").splitlines())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *(a + b for a, b in merges), _START, _END]
    return _clip({token: index for index, token in enumerate(tokens)}, merges)


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=_END
        )
    )
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (_START, _END)])
    return tokenizer
