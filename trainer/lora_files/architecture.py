"""What a LoRA was made for, as its shapes and names tell; metadata come last, because they are often wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Architecture = Literal["sd1", "sd2", "sdxl", "unknown"]
TITLES: dict[Architecture, str] = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "unknown": "an unknown model",
}
_CROSS_ATTENTION: dict[int, Architecture] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_CROSS_KEY = re.compile(r"_attn2_to_[kv]$")
_XL_BLOCK = re.compile(r"transformer_blocks_([2-9]|\d\d)_|_(input|output)_blocks_[78]_1_transformer_blocks_[1-9]")


def architecture_of(down_shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> Architecture:
    """The architecture that a LoRA fits.

    Args:
        down_shapes: shape of each module's down matrix, by the module's kohya name.
        metadata: the file's metadata.
    """
    if any(_XL_BLOCK.search(name) for name in down_shapes):
        return "sdxl"
    for name, shape in down_shapes.items():
        if _CROSS_KEY.search(name) and shape[1] in _CROSS_ATTENTION:
            return _CROSS_ATTENTION[shape[1]]
    return architecture_from_metadata(metadata)


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
