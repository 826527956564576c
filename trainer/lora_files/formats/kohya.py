"""The kohya layout, which every tool reads: `lora_unet_<module with _ for .>.lora_down.weight`, and its relatives.

The relatives have other words in front: LyCORIS' own files (`lycoris_…`) and those that A1111 turns names into.
"""

from __future__ import annotations

from trainer.lora_files.names import (
    ALL_PREFIXES,
    TEXT_ENCODER_PREFIX,
    UNET_PREFIX,
    canonical_name,
    kohya_name,
    kohya_names,
)

__all__ = [
    "TEXT_ENCODER_PREFIX",
    "UNET_PREFIX",
    "A1111Format",
    "KohyaFormat",
    "LycorisFormat",
    "kohya_name",
    "kohya_names",
]

_TEXT_STARTS = ("text_model_", "encoder_layers_", "final_layer_norm")


class KohyaFormat:
    """`lora_unet_….lora_down.weight`, `lora_te_….alpha`, with either UNet's block names."""

    name = "kohya"

    def module_name(self, module: str) -> str | None:
        """The canonical name of a key's module."""
        return canonical_name(module) if module.startswith(ALL_PREFIXES) and "." not in module else None


class LycorisFormat:
    """`lycoris_down_blocks_1_….lora_down.weight`: LyCORIS without kohya, as SimpleTuner writes it."""

    name = "lycoris"

    def module_name(self, module: str) -> str | None:
        """The canonical name: text encoders are told by their own words."""
        if not module.startswith("lycoris_") or "." in module:
            return None
        rest = module.removeprefix("lycoris_").removeprefix("unet_")
        return canonical_name((TEXT_ENCODER_PREFIX if rest.startswith(_TEXT_STARTS) else UNET_PREFIX) + rest)


class A1111Format:
    """`diffusion_model_input_blocks_1_1_….lora_up.weight`: the names that A1111 translates to, saved by its extensions."""

    name = "a1111"
    _prefixes = (("diffusion_model_", UNET_PREFIX), ("transformer_text_model_", f"{TEXT_ENCODER_PREFIX}text_model_"))

    def module_name(self, module: str) -> str | None:
        """The canonical name."""
        for theirs, ours in self._prefixes:
            if module.startswith(theirs) and "." not in module:
                return canonical_name(ours + module.removeprefix(theirs))
        return None
