"""Settings that stand beside the tensors: diffusers' in the metadata, peft's in `adapter_config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import LoraFileError
from trainer.lora_files.names import ALL_PREFIXES, FIRST_TEXT_ENCODER_PREFIX, PREFIXES, kohya_name

ALPHA_METADATA_KEY = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"
_MAX_CONFIG_BYTES = 10_000_000


def alphas_from_metadata(metadata: Mapping[str, str], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """Alpha of each module (by its kohya name) as the adapter settings in the metadata say; empty where there are none.

    Raises: LoraFileError: the settings cannot be read.
    """
    if ALPHA_METADATA_KEY not in metadata:
        return {}
    try:
        settings = json.loads(metadata[ALPHA_METADATA_KEY])
        found: dict[str, float] = {}
        for component, prefix in (*PREFIXES.items(), ("text_encoder", FIRST_TEXT_ENCODER_PREFIX)):
            own = {
                key.removeprefix(f"{component}."): value
                for key, value in settings.items()
                if key.startswith(f"{component}.")
            }
            if "lora_alpha" in own:
                found |= {
                    name: _alpha(own, component, name, rank) for name, rank in ranks.items() if name.startswith(prefix)
                }
        return found
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise LoraFileError(f"The file's metadata '{ALPHA_METADATA_KEY}' are damaged.", where=where) from error


def read_peft_config(path: Path) -> dict[str, Any]:
    """The `adapter_config.json` beside a file of the peft library; empty where there is none.

    Raises: LoraFileError: it is damaged.
    """
    config = path.parent / PEFT_CONFIG
    if not config.is_file():
        return {}
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        settings = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("it is not a table")
        return settings
    except (OSError, ValueError, RecursionError) as error:
        raise LoraFileError(
            f"The settings beside the file are damaged ({error}).",
            where=str(config),
            fix="Get both files again, or take this one away: the scale 1 is used then.",
        ) from error


def alphas_from_peft(settings: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> dict[str, float]:
    """Alpha of each module as peft's settings say; empty where they do not.

    Raises: LoraFileError: the settings are damaged.
    """
    key = "lora_alpha" if "lora_alpha" in settings else "alpha"
    if key not in settings:
        return {}
    try:
        own = {**settings, "lora_alpha": settings[key]}
        return {name: _alpha(own, "unet", name, rank) for name, rank in ranks.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LoraFileError(f"The settings in {PEFT_CONFIG} beside the file are damaged.", where=where) from error


def _alpha(settings: Mapping[str, Any], component: str, name: str, rank: int) -> float:
    alpha = float(settings["lora_alpha"])
    bare = _bare(name)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        path = _bare(
            kohya_name(f"{component}.{str(pattern).removeprefix(f'{component}.').removeprefix('text_model.')}")
        )
        # peft matches a pattern to the whole end of a module's path.
        if bare == path or bare.endswith("_" + path):
            alpha = float(value)
    # Rank-stabilized LoRA scales by alpha / sqrt(rank).
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha


def _bare(name: str) -> str:
    for prefix in ALL_PREFIXES:
        name = name.removeprefix(prefix)
    return name.removeprefix("text_model_")
