"""The layouts that diffusers and peft write: `unet.….lora_A.weight`, `….lora.down.weight`, `….to_q_lora.down.weight`.

A file may mix them; the part decides key by key. Alpha stands beside the tensors, in the metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainer.errors import LoraFileError
from trainer.lora_files.formats.kohya import kohya_name
from trainer.lora_files.formats.parts import Part

ALPHA_METADATA_KEY = "lora_adapter_metadata"
_PREFIXES = ("unet.", "text_encoder.")
_SUFFIX = re.compile(
    r"\.(?:lora_(?P<peft>[AB])(?:\.default)?\.weight|(?:lora|lora_linear_layer)\.(?P<script>down|up)\.weight|(?P<alpha>alpha))$"
)
_PROCESSOR = re.compile(r"\.processor\.(?P<target>to_q|to_k|to_v|to_out)(?:_lora\.(?P<part>down|up)\.weight)?$")
_PEFT_PARTS: dict[str, Part] = {"A": "down", "B": "up"}


class DiffusersFormat:
    """Dotted module paths with `unet.` or `text_encoder.` in front."""

    name = "diffusers"

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether any key has one of the layout's prefixes."""
        return any(key.startswith(_PREFIXES) for key in keys)

    def split(self, key: str) -> tuple[str, Part] | None:
        """Module (by its kohya name) and part of a key."""
        if not key.startswith(_PREFIXES):
            return None
        part: Part
        processor = _PROCESSOR.search(key)
        if processor and processor["part"]:
            part = "down" if processor["part"] == "down" else "up"
            return kohya_name(_without_processor(key)), part
        suffix = _SUFFIX.search(key)
        if suffix is None:
            return None
        if suffix["peft"]:
            part = _PEFT_PARTS[suffix["peft"]]
        elif suffix["script"]:
            part = "down" if suffix["script"] == "down" else "up"
        else:
            part = "alpha"
        return kohya_name(_without_processor(key[: suffix.start()])), part


def _without_processor(path: str) -> str:
    """`….attn1.processor.to_out` is `….attn1.to_out.0` in the model."""
    found = _PROCESSOR.search(path)
    if found is None:
        return path
    target = found["target"]
    return f"{path[: found.start()]}.{target}.0" if target == "to_out" else f"{path[: found.start()]}.{target}"


def alphas_from_metadata(metadata: Mapping[str, str], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """Alpha of each module (by its kohya name) as the adapter settings in the metadata say; empty where there are none.

    Raises: LoraFileError: the settings cannot be read, or are of a method whose scale is not alpha / rank alone.
    """
    if ALPHA_METADATA_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[ALPHA_METADATA_KEY])
        found: dict[str, float] = {}
        for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
            for name, rank in ranks.items():
                if name.startswith(prefix) and f"{component}.lora_alpha" in settings:
                    found[name] = _alpha(settings, component, name, rank)
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise LoraFileError(f"The file's metadata '{ALPHA_METADATA_KEY}' are damaged.", where=where) from error


def _alpha(settings: Mapping[str, Any], component: str, name: str, rank: int) -> float:
    alpha = float(settings[f"{component}.lora_alpha"])
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        path = pattern.removeprefix(f"{component}.").removeprefix("text_model.")
        # peft matches a pattern to the whole end of a module's path.
        if name == kohya_name(f"{component}.{path}") or name.endswith("_" + path.replace(".", "_")):
            alpha = float(value)
    # Rank-stabilized LoRA scales by alpha / sqrt(rank).
    return alpha * rank**0.5 if settings.get(f"{component}.use_rslora") else alpha
