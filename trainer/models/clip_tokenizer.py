"""The tokenizer of all CLIP text encoders, from the bundled list of merges."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

from trainer.paths import ASSETS

_MERGES = ASSETS / "configs" / "clip_tokenizer" / "merges.txt"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def bundled_tokenizer(settings: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with a family's own settings.

    Args:
        settings: a `tokenizer_config.json` with `pad_token` and `model_max_length`: OpenCLIP's encoders were trained
            with another padding than OpenAI's.
    """
    options = json.loads(settings.read_text(encoding="utf-8"))
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(merges),  # type: ignore[arg-type] - pairs, as transformers itself passes them
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        **options,
    )


@cache
def _vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """The numbers of all tokens: the bytes, the bytes that end a word, the merges in their order, the two marks."""
    lines = _MERGES.read_text(encoding="utf-8").splitlines()
    merges = tuple((first, second) for first, second in (line.split(" ") for line in lines))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *(a + b for a, b in merges), _START, _END]
    return {token: index for index, token in enumerate(tokens)}, merges
