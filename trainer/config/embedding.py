"""A word of one's own: vectors that are learned for the trigger word, with a LoRA (pivotal tuning) or alone (textual inversion)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings

MAX_VECTORS = 64
GROUP = "embedding"
"""The name that the vectors have among the groups of trained weights."""
# What would end a tag or a weight in a prompt, a name in a LoRA file's keys, or a file's name.
_FORBIDDEN = re.compile(r"[\s,.:;()\[\]{}|\\/<>\"*?]")


class EmbeddingSettings(Settings):
    """Pivotal tuning: the trigger word gets vectors of its own, which are learned with the LoRA or, without one, alone."""

    num_vectors: Annotated[int, BASIC, Field(ge=0, le=MAX_VECTORS)] = 0
    """How many vectors the trigger word becomes in the text encoder. 1 to 4 for an object or a character, up to 8 for a style; each takes a token's place in the prompt. 0: the word stays what the base model knows. With ranks of 0 nothing but the vectors is learned (textual inversion)."""
    init_text: Annotated[str, Field(max_length=200)] = ""
    """Words that the vectors start from, such as "robot" or "ink painting". Empty: the trigger word as the base model reads it."""
    phase: Literal["together", "first"] = "together"
    """When the LoRA learns: `together` with the vectors from the first step, or `first` the vectors alone and then the LoRA with them."""
    first_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps in which the phase `first` learns the vectors alone."""
    stop_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the steps after which the vectors stay as they are and only the LoRA goes on, faster. 0.5 against vectors that overfit."""
    per_layer: bool = False
    """Vectors of their own for each cross-attention layer of the UNet (P+, arXiv 2303.09522): shape and style can differ by layer. Every caption is encoded once a layer, and other programs read only the mean."""
    norm_pull: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far each step pulls a vector's length to the average word's, against a word that drowns the rest of the prompt: 0.1 gently, 1 keeps it. 0: off."""
    bundle: bool = True
    """Put the vectors into the LoRA file as well as into a file of their own. diffusers refuses LoRA files with such vectors; turn it off for it."""

    def first_steps(self, total_steps: int) -> int:
        """Steps at the start in which the LoRA rests."""
        if not self.num_vectors or self.phase != "first":
            return 0
        return min(total_steps - 1, max(1, round(self.first_share * total_steps)))

    def learns(self, group: str, step: int, total_steps: int) -> bool:
        """Whether step `step` (from 1) changes a group of trained weights."""
        if group == GROUP:
            return step <= max(1, round(self.stop_share * total_steps))
        return step > self.first_steps(total_steps)


def embedding_faults(settings: EmbeddingSettings, trigger_word: str, *, has_lora: bool) -> list[tuple[str, str]]:
    """Settings that do not go together, as (field path, message with the remedy)."""
    fields = EmbeddingSettings.model_fields
    changed = [name for name, info in fields.items() if getattr(settings, name) != info.default]
    if not settings.num_vectors:
        return [
            (_at(name), f"does nothing without vectors: set {_at('num_vectors')}, or set it back to {_default(name)}")
            for name in changed
        ]
    faults: list[tuple[str, str]] = []
    if not trigger_word:
        faults.append(("data.trigger_word", "the word that the learned vectors stand for: write one"))
    elif _FORBIDDEN.search(trigger_word.replace(" ", "")):
        faults.append(
            ("data.trigger_word", "a word with vectors of its own has no commas, dots, colons, brackets or slashes")
        )
    if "first_share" in changed and settings.phase != "first":
        faults.append(
            (_at("first_share"), f"is for the phase first: choose that, or set it back to {_default('first_share')}")
        )
    if settings.phase == "first" and settings.stop_share < settings.first_share:
        faults.append(
            (_at("stop_share"), "in the steps before the LoRA begins nothing would learn: at least first_share")
        )
    if not has_lora:
        if settings.phase == "first":
            faults.append(
                (_at("phase"), "there is no LoRA that could follow: choose together, or give the UNet a rank")
            )
        if settings.stop_share < 1:
            faults.append((_at("stop_share"), "without a LoRA nothing would learn afterwards: set it to 1"))
    return faults


def _at(name: str) -> str:
    return f"adapter.embedding.{name}"


def _default(name: str) -> str:
    value = EmbeddingSettings.model_fields[name].default
    return "empty" if value == "" else str(value)
