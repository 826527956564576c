"""Settings that several tools share, as the engine takes them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.cut import Cut, WeightedLora
from trainer.lora_tools.merge import MergeInput
from trainer.lora_tools.truncation import Truncation
from trainer.tools.result import ToolContext


def truncation(cut: Cut) -> Truncation:
    """The rule for the rank."""
    return Truncation("exact") if cut.rule == "exact" else Truncation(cut.rule, cut.value, cut.max_rank or None)


def merge_inputs(loras: Sequence[WeightedLora], context: ToolContext) -> list[MergeInput]:
    """The files with their weights. Raises LoraFileError: there is no such file."""
    return [MergeInput(context.lora(lora.file), lora.unet_weight, lora.text_encoder_weight) for lora in loras]
