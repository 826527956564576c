"""Named sets of layers: which of a model's layers an adapter changes, told from their names and shapes, without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainer.config.adapter import PartLora, UnetLora

UnetTargets = Literal[
    "attention", "attention-qv", "attention+mlp", "all-linear", "all+conv", "style-blocks", "content-blocks", "pattern"
]
TextTargets = Literal["attention", "attention-qv", "attention+mlp"]
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_UNET_ENDINGS = {
    "attention": _ATTENTION,
    "attention-qv": ("to_q", "to_v"),
    "attention+mlp": (*_ATTENTION, "ff.net.0.proj", "ff.net.2"),
}
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_ENDINGS = {
    "attention": _TEXT_ATTENTION,
    "attention-qv": ("q_proj", "v_proj"),
    "attention+mlp": (*_TEXT_ATTENTION, "fc1", "fc2"),
}
BLOCK_SETS = {"style-blocks": "up_blocks.0.attentions.1.", "content-blocks": "up_blocks.0.attentions.0."}
"""The blocks of B-LoRA (Frenkel et al. 2024, https://arxiv.org/abs/2403.14572), which are known for SDXL only."""
# Loaders of other tools skip these without a word, so that training them would be lost on export.
NEVER = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")


def is_target(part: str, settings: PartLora, path: str, shape: Sequence[int]) -> bool:
    """Whether a linear layer or convolution is in the set that a part's settings name.

    Args:
        part: "unet", or a text encoder.
        path: the module path within the part.
        shape: of its weight, `(out, in)` or `(out, in, kernel, kernel)`.
    """
    if part == "unet":
        return _is_unet_target(settings, path, shape)  # type: ignore[arg-type] - the UNet's settings are UnetLora
    return len(shape) == 2 and _ends(path, _TEXT_ENDINGS[settings.targets])


def _is_unet_target(settings: UnetLora, path: str, shape: Sequence[int]) -> bool:
    if path.startswith(NEVER):
        return False
    targets = settings.targets
    if targets in _UNET_ENDINGS:
        return len(shape) == 2 and _ends(path, _UNET_ENDINGS[targets])
    if targets in BLOCK_SETS:
        return path.startswith(BLOCK_SETS[targets]) and _ends(path, _ATTENTION)
    if targets == "all-linear":
        # SD 1.x writes the projections around its attention as 1 x 1 convolutions, which are linear layers.
        # The shortcuts of the residual blocks are 1 x 1 too, but belong to the convolutions (LoCon) in every tool.
        return len(shape) == 2 or path.endswith((".proj_in", ".proj_out"))
    if targets == "all+conv":
        return True
    return in_pattern(settings.pattern, path)


def _ends(path: str, endings: tuple[str, ...]) -> bool:
    return path.endswith(tuple(f".{ending}" for ending in endings))


@lru_cache(maxsize=1 << 16)
def in_pattern(pattern: str, path: str) -> bool:
    """Whether a path is in a free pattern: names with * and ?, a comma between them, each also for all below it; or re:REGEX."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], path) is not None
    names = [name.strip() for name in pattern.split(",") if name.strip()]
    return any(fnmatchcase(path, name) or fnmatchcase(path, f"{name}.*") for name in names)


def pattern_fault(pattern: str) -> str:
    """What is wrong with a free pattern; empty where nothing is."""
    if not pattern.strip():
        return "the targets 'pattern' need one, such as up_blocks.1.*.attn2, mid_block"
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            return f"is no regular expression ({error})"
    return ""
