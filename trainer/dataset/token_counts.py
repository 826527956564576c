"""How many tokens a caption has for a base model, by the model's own tokenizer and without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from trainer.base_models.listing import find_base
from trainer.errors import InkwashError, ModelFileError
from trainer.paths import ASSETS, DataFolder

TOKEN_LIMITS = (75, 150, 225)
"""What a text encoder reads at once, twice and three times (`data.max_caption_tokens`)."""
EMBEDDED = ASSETS / "models" / "inkwash-tiny"
_MERGES = ASSETS / "configs" / "clip_tokenizer" / "merges.txt"
_START, _END = "<|startoftext|>", "<|endoftext|>"
# As CLIP's own: https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TokenCounter:
    """Counts tokens as the text encoders of one base model see them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, without those that mark beginning and end."""
        encoded = self._tokenizer.encode_batch_fast(list(captions), add_special_tokens=False)
        return [len(entry.ids) for entry in encoded]

    def count_one(self, caption: str) -> int:
        """Tokens of a caption."""
        return self.count([caption])[0]


def token_counter(base: str, data: DataFolder) -> TokenCounter:
    """The counter of a base model, by name or path as `find_base` takes it; of the embedded model where `base` is empty.

    Raises: ModelFileError: there is no such model, or its tokenizer cannot be read.
    """
    path = find_base(base, data) if base else EMBEDDED
    folder = path / "tokenizer"
    if path.is_file() or not folder.is_dir():
        return _bundled()
    newest = max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)
    return _of_folder(folder, newest)


def limit_of(tokens: int) -> int | None:
    """The smallest limit that a caption of so many tokens keeps; None where it is over all of them."""
    return next((limit for limit in TOKEN_LIMITS if tokens <= limit), None)


@lru_cache(maxsize=4)
def _of_folder(folder: Path, _newest: int) -> TokenCounter:
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return TokenCounter(tokenizer)
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
        return TokenCounter(_clip(vocabulary, merges))
    except InkwashError:
        raise
    except Exception as failure:  # the package raises plain Exception for what it cannot read
        raise ModelFileError(
            "The tokenizer of this base model cannot be read.",
            where=str(folder),
            fix="Get the model anew, or count with another one.",
        ) from failure


@lru_cache(maxsize=1)
def _bundled() -> TokenCounter:
    """CLIP's own, which all models in one file use."""
    merges = [_pair(line) for line in _MERGES.read_text(encoding="utf-8").splitlines()]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *(a + b for a, b in merges), _START, _END]
    return TokenCounter(_clip({token: index for index, token in enumerate(tokens)}, merges))


def _pair(line: str) -> tuple[str, str]:
    first, second = line.split(" ")
    return first, second


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=_END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # A caption may hold the marks as text, and each of them counts as one.
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (_START, _END)])
    return tokenizer
