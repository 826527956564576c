"""The one name that a layer goes by in the tools, and the block that it belongs to.

Common names are the canonical ones of `trainer.lora_files.names`, with `lora_te_` for the first text encoder of every
family: a checkpoint or a stray LoRA does not always tell SDXL from the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.lora_files.names import FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX, canonical_name

_BLOCK = re.compile(
    r"lora_unet_((?:down|up)_blocks_\d+|mid_block)_(attentions|resnets|downsamplers|upsamplers)_(\d+)|lora_te(2?)_.*?layers_(\d+)_"
)


def common_name(name: str) -> str:
    """A kohya name with diffusers' block names, and `lora_te_` for the first text encoder; unknown names as they are."""
    return _with_prefix(canonical_name(name), FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX)


def xl_name(name: str) -> str:
    """A common name as the canonical one of SDXL."""
    return _with_prefix(name, TEXT_ENCODER_PREFIX, FIRST_TEXT_ENCODER_PREFIX)


def _with_prefix(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name.startswith(old) else name


def block_of(name: str) -> str:
    """The block of a common name, for figures: "down_blocks.1.attentions.0", "text_encoder.layers.5", else "other"."""
    found = _BLOCK.match(name)
    if not found:
        return "other"
    if found[1]:
        return f"{found[1].replace('_blocks_', '_blocks.')}.{found[2]}.{found[3]}"
    return f"text_encoder{'_2' if found[4] else ''}.layers.{found[5]}"


def in_model_order(names: Iterable[str]) -> list[str]:
    """Names sorted so that 10 comes after 9, the UNet from its input to its output, then the text encoders."""
    places = ("lora_unet_conv_in", "lora_unet_down", "lora_unet_mid", "lora_unet_up", "lora_unet", "lora_te")

    def key(name: str) -> tuple[int, list[tuple[int, int, str]]]:
        place = next((index for index, start in enumerate(places) if name.startswith(start)), len(places))
        return place, [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]

    return sorted(names, key=key)
