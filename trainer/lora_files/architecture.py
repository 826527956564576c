"""What a LoRA was made for, as its shapes and names tell; metadata come last, because they are often wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from trainer.lora_files.names import (
    FIRST_TEXT_ENCODER_PREFIX,
    SECOND_TEXT_ENCODER_PREFIX,
    TEXT_ENCODER_PREFIX,
    UNET_PREFIX,
)

Architecture = Literal["sd1", "sd2", "sdxl", "unknown"]
TITLES: dict[Architecture, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "unknown": "an unknown model",
}
_CROSS_ATTENTION: dict[int, Architecture] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_CROSS_KEY = re.compile(r"_attn2_to_[kv]$")
# The others have one transformer block after each residual block.
_XL_BLOCK = re.compile(r"_transformer_blocks_[1-9]")
_TEXT_KEY = re.compile(r"_self_attn_[qkv]_proj$|_mlp_fc1$")
_TEXT_WIDTHS: dict[int, Architecture] = {768: "sd1", 1024: "sd2"}
_SECOND_TEXT_WIDTH = 1280


def architecture_of(widths: Mapping[str, int], metadata: Mapping[str, str]) -> Architecture:
    """The architecture that a LoRA fits.

    Args:
        widths: input channels of each module (0 where unknown), by the module's canonical kohya name.
        metadata: the file's metadata.
    """
    if any(_is_xl(name) for name in widths):
        return "sdxl"
    for name, width in widths.items():
        if _CROSS_KEY.search(name) and width in _CROSS_ATTENTION:
            return _CROSS_ATTENTION[width]
    said = architecture_from_metadata(metadata)
    if said == "unknown":
        for name, width in widths.items():
            # SDXL's first encoder is as wide as SD 1's; only its usual prefix tells them apart.
            if name.startswith(TEXT_ENCODER_PREFIX) and _TEXT_KEY.search(name) and width in _TEXT_WIDTHS:
                return _TEXT_WIDTHS[width]
    return said


def _is_xl(name: str) -> bool:
    if name.startswith(UNET_PREFIX):
        return bool(_XL_BLOCK.search(name))
    return name.startswith(SECOND_TEXT_ENCODER_PREFIX)


def architecture_from_metadata(metadata: Mapping[str, str]) -> Architecture:
    """The architecture that the metadata name."""
    version = f"{metadata.get('ss_base_model_version', '')} {metadata.get('modelspec.architecture', '')}".lower()
    if "sdxl" in version or "diffusion-xl" in version:
        return "sdxl"
    if metadata.get("ss_v2") == "True" or "sd_v2" in version or "diffusion-v2" in version:
        return "sd2"
    if "sd_v1" in version or "sd_1" in version or "diffusion-v1" in version:
        return "sd1"
    return "unknown"


def settled_names(widths: Mapping[str, int], metadata: Mapping[str, str], layout: str) -> dict[str, str]:
    """For each name whose text encoder goes by another prefix the name that it should have.

    The first text encoder is `lora_te1_` in SDXL and `lora_te_` elsewhere, whatever the file says. The peft library's
    files do not name the encoder at all; the second one is told by its width.
    """
    names = {}
    if layout == "peft":
        texts = [name for name in widths if name.startswith(TEXT_ENCODER_PREFIX)]
        if any(_TEXT_KEY.search(name) and widths[name] == _SECOND_TEXT_WIDTH for name in texts):
            return {
                name: name.replace(TEXT_ENCODER_PREFIX, SECOND_TEXT_ENCODER_PREFIX, 1)
                for name in widths
                if name in texts
            }
    is_xl = architecture_of(widths, metadata) == "sdxl"
    wrong, right = (
        (TEXT_ENCODER_PREFIX, FIRST_TEXT_ENCODER_PREFIX) if is_xl else (FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX)
    )
    for name in widths:
        if name.startswith(wrong):
            names[name] = name.replace(wrong, right, 1)
    return names
