"""The kohya layout, which every tool reads: `lora_unet_<module with _ for .>.lora_down.weight`.

Names cannot be turned back by replacing `_` with `.` (`to_out_0`, `proj_in`): the way back is a table made of the
model's own module names.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.lora_files.formats.parts import Part

UNET_PREFIX = "lora_unet_"
TEXT_ENCODER_PREFIX = "lora_te_"
# Some tools write the SDXL name of the first text encoder also for SD 1.x.
_PREFIXES = (UNET_PREFIX, TEXT_ENCODER_PREFIX, "lora_te1_")
PART_SUFFIXES: dict[Part, str] = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
_PARTS: dict[str, Part] = {suffix: part for part, suffix in PART_SUFFIXES.items()}


def kohya_name(module_path: str) -> str:
    """The name of a module in a file.

    "unet.down_blocks.0…" becomes "lora_unet_down_blocks_0_…", "text_encoder.encoder.layers.0…" becomes
    "lora_te_text_model_encoder_layers_0_…". What is such a name already stays as it is.

    Raises: ValueError: the path begins with neither "unet." nor "text_encoder.".
    """
    if module_path.startswith((*_PREFIXES, "lora_te2_")):
        return module_path
    component, _, path = module_path.partition(".")
    if component == "unet" and path:
        return UNET_PREFIX + path.replace(".", "_")
    if component == "text_encoder" and path:
        # transformers 5 has lost this level; without it no other tool knows the name.
        path = path if path.startswith("text_model.") else f"text_model.{path}"
        return TEXT_ENCODER_PREFIX + path.replace(".", "_")
    raise ValueError(f"not a module of the unet or the text encoder: {module_path!r}")


def kohya_names(module_paths: Iterable[str]) -> dict[str, str]:
    """The table from names in a file to module paths."""
    return {kohya_name(path): path for path in module_paths}


def kohya_key(module_path: str, part: Part) -> str:
    """The key of a tensor in a file."""
    return f"{kohya_name(module_path)}.{PART_SUFFIXES[part]}"


class KohyaFormat:
    """`lora_unet_….lora_down.weight`, `….lora_up.weight`, `….alpha`."""

    name = "kohya"

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether any key has one of the layout's prefixes."""
        return any(key.startswith(_PREFIXES) for key in keys)

    def split(self, key: str) -> tuple[str, Part] | None:
        """Module and part of a key."""
        module, _, suffix = key.partition(".")
        if suffix not in _PARTS or not module.startswith(_PREFIXES):
            return None
        return module.replace("lora_te1_", TEXT_ENCODER_PREFIX, 1), _PARTS[suffix]
