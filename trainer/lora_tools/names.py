"""The names that one layer goes by in different files, brought to one; and the block that a layer belongs to.

Stable Diffusion's UNet has two namings: diffusers' (`down_blocks_1_attentions_0_…`, kohya for SD 1 and 2) and that of
the original code (`input_blocks_4_1_…`, kohya for SDXL). Both have two layers a block in every family here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNET = "lora_unet_"
_SIMPLE = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SIMPLE_BACK = {new: old for old, new in _SIMPLE.items()}
_RESNET_BACK = {new: old for old, new in _RESNET.items()}
_ORIGINAL = re.compile(r"(input|output)_blocks_(\d+)_(\d)_(.+)|middle_block_([012])_(.+)")
_DIFFUSERS = re.compile(
    r"(down|up)_blocks_(\d)_(resnets|attentions|downsamplers|upsamplers)_(\d)_(.+)|mid_block_(resnets|attentions)_(\d)_(.+)"
)
_BLOCK = re.compile(
    r"lora_unet_((?:down|up)_blocks_\d+|mid_block)_(attentions|resnets|downsamplers|upsamplers)_(\d+)|lora_te(2?)_.*?layers_(\d+)_"
)


def common_name(name: str) -> str:
    """A kohya name with diffusers' block names, and `lora_te_` for the first text encoder; unknown names as they are."""
    if name.startswith("lora_te1_"):
        return f"lora_te_{name[len('lora_te1_') :]}"
    return UNET + _from_original(name[len(UNET) :]) if name.startswith(UNET) else name


def xl_name(name: str) -> str:
    """A common name as kohya writes it for SDXL: the original code's block names, `lora_te1_`."""
    if name.startswith("lora_te_"):
        return f"lora_te1_{name[len('lora_te_') :]}"
    return UNET + _to_original(name[len(UNET) :]) if name.startswith(UNET) else name


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


def _from_original(path: str) -> str:
    if path in _SIMPLE:
        return _SIMPLE[path]
    found = _ORIGINAL.fullmatch(path)
    if not found:
        return path
    if found[5]:
        return (
            f"mid_block_attentions_0_{found[6]}"
            if found[5] == "1"
            else f"mid_block_resnets_{int(found[5]) // 2}_{_RESNET.get(found[6], found[6])}"
        )
    number, part, rest = int(found[2]), found[3], found[4]
    if found[1] == "input":
        block, layer = divmod(number - 1, 3)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        head = f"down_blocks_{block}"
    else:
        block, layer = divmod(number, 3)
        if part != "0" and rest == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        head = f"up_blocks_{block}"
    return f"{head}_attentions_{layer}_{rest}" if part == "1" else f"{head}_resnets_{layer}_{_RESNET.get(rest, rest)}"


def _to_original(path: str) -> str:
    if path in _SIMPLE_BACK:
        return _SIMPLE_BACK[path]
    found = _DIFFUSERS.fullmatch(path)
    if not found:
        return path
    if found[6]:
        if found[6] == "attentions":
            return f"middle_block_1_{found[8]}"
        return f"middle_block_{2 * int(found[7])}_{_RESNET_BACK.get(found[8], found[8])}"
    side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks_{3 * block + 3}_0_op"
    if kind == "upsamplers":
        # SDXL's blocks with an upsampler all have attention, which is part 1.
        return f"output_blocks_{3 * block + 2}_2_conv"
    number = f"input_blocks_{3 * block + layer + 1}" if side == "down" else f"output_blocks_{3 * block + layer}"
    return f"{number}_1_{rest}" if kind == "attentions" else f"{number}_0_{_RESNET_BACK.get(rest, rest)}"
