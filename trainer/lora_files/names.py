"""Names of layers in LoRA files, and the ways between them. Pure text: no model is needed.

Inside Inkwash a layer's name in a file is its kohya name with diffusers' block names
(`lora_unet_down_blocks_1_attentions_0_…`). Files may use the names of the original code instead (`input_blocks_4_1_…`,
"sgm" here); both follow from each other. The way back from underscores to dots is a walk over the words that occur in
these models, because `to_out_0` and `proj_in` hold underscores of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNET_PREFIX = "lora_unet_"
TEXT_ENCODER_PREFIX = "lora_te_"
FIRST_TEXT_ENCODER_PREFIX = "lora_te1_"
SECOND_TEXT_ENCODER_PREFIX = "lora_te2_"
PREFIXES = {
    "unet": UNET_PREFIX,
    "text_encoder": TEXT_ENCODER_PREFIX,
    "text_encoder_2": SECOND_TEXT_ENCODER_PREFIX,
}
"""The kohya prefix of each part of a model. SDXL's first text encoder is `lora_te1_` in files."""
ALL_PREFIXES = (*PREFIXES.values(), FIRST_TEXT_ENCODER_PREFIX)
BIAS_SUFFIX = ".bias"
"""Ends the name of what changes a layer's bias instead of its weight; there is no dot elsewhere in a kohya name."""

# transformers 5 has lost the level `text_model` from one of its two classes; every other tool needs it.
_BELOW_TEXT_MODEL = ("encoder", "embeddings", "final_layer_norm")


def kohya_name(module_path: str) -> str:
    """The name of a module in a file; a name that is one already is returned as it is.

    "unet.down_blocks.0…" becomes "lora_unet_down_blocks_0_…", "text_encoder.encoder.layers.0…" becomes
    "lora_te_text_model_encoder_layers_0_…", "text_encoder_2.…" "lora_te2_…". A bias ("….conv_in.bias") keeps its ending.

    Raises: ValueError: the path begins with no part of a model that a LoRA can change.
    """
    if module_path.startswith(ALL_PREFIXES):
        return module_path
    component, _, path = module_path.partition(".")
    if component not in PREFIXES or not path:
        raise ValueError(f"not a module of the unet or a text encoder: {module_path!r}")
    ending = BIAS_SUFFIX if path.endswith(BIAS_SUFFIX) else ""
    path = path.removesuffix(ending)
    if component != "unet" and path.split(".")[0] in _BELOW_TEXT_MODEL:
        path = f"text_model.{path}"
    return PREFIXES[component] + path.replace(".", "_") + ending


def kohya_names(module_paths: Iterable[str]) -> dict[str, str]:
    """The table from names in a file to module paths."""
    return {kohya_name(path): path for path in module_paths}


def canonical_name(name: str) -> str:
    """A kohya name of a file with diffusers' block names, and with `text_model` in text encoders."""
    for prefix in ALL_PREFIXES:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            if prefix == UNET_PREFIX:
                return prefix + from_sgm(rest)
            # `encoder_layers_…`: written by tools that flatten transformers 5's own names.
            return prefix + (f"text_model_{rest}" if rest.startswith(_BELOW_TEXT_MODEL) else rest)
    return name


_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_RESNET_BACK = {value: key for key, value in _RESNET.items()}
_SINGLE = {
    "input_blocks_0_0": "conv_in", "out_0": "conv_norm_out", "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip
_SINGLE_BACK = {value: key for key, value in _SINGLE.items()}
_MIDDLE = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}
_MIDDLE_BACK = {value: key for key, value in _MIDDLE.items()}
_SGM = re.compile(r"(?:(?P<side>input|output)_blocks_(?P<block>\d+)|middle_block)_(?P<part>\d+)_(?P<rest>.+)")
_OURS = re.compile(
    r"(?:(?P<side>down|up)_blocks_(?P<block>\d+)|mid_block)_(?P<kind>resnets|attentions|downsamplers|upsamplers)_(?P<index>\d+)_(?P<rest>.+)"
)


def from_sgm(name: str) -> str:
    """A UNet layer's name (without prefix) in diffusers' words; names in other words are returned as they are."""
    if name in _SINGLE:
        return _SINGLE[name]
    found = _SGM.fullmatch(name)
    if found is None:
        return name
    part, rest = found["part"], found["rest"]
    if found["side"] is None:
        return f"mid_block_{_MIDDLE[part]}_{_RESNET.get(rest, rest)}" if part in _MIDDLE else name
    is_input = found["side"] == "input"
    block, index = divmod(int(found["block"]) - is_input, 3)
    start = f"{'down' if is_input else 'up'}_blocks_{block}"
    if is_input and rest == "op":
        return f"{start}_downsamplers_0_conv"
    if not is_input and rest == "conv":
        return f"{start}_upsamplers_0_conv"
    if part == "0":
        return f"{start}_resnets_{index}_{_RESNET.get(rest, rest)}"
    return f"{start}_attentions_{index}_{rest}" if part == "1" else name


def to_sgm(name: str) -> str:
    """The inverse of `from_sgm`, for SDXL, whose upsamplers all stand behind an attention."""
    if name in _SINGLE_BACK:
        return _SINGLE_BACK[name]
    found = _OURS.fullmatch(name)
    if found is None:
        return name
    kind, index, rest = found["kind"], int(found["index"]), found["rest"]
    if kind == "resnets":
        rest = _RESNET_BACK.get(rest, rest)
    if found["side"] is None:
        return f"middle_block_{_MIDDLE_BACK[f'{kind}_{index}']}_{rest}"
    block = int(found["block"])
    if kind == "downsamplers":
        return f"input_blocks_{3 * block + 3}_0_op"
    if kind == "upsamplers":
        return f"output_blocks_{3 * block + 2}_2_conv"
    part = 0 if kind == "resnets" else 1
    if found["side"] == "down":
        return f"input_blocks_{3 * block + index + 1}_{part}_{rest}"
    return f"output_blocks_{3 * block + index}_{part}_{rest}"


_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in",
    "proj_out", "norm", "norm1", "norm2", "norm3", "conv", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in",
    "conv_out", "conv_norm_out", "time_embedding", "add_embedding", "linear_1", "linear_2", "text_model", "encoder",
    "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2", "layer_norm1", "layer_norm2",
    "final_layer_norm", "embeddings", "token_embedding", "position_embedding", "text_projection", r"\d+",
)  # fmt: skip
# Longest first, and to the next underscore: `proj_in` is not `proj` and `in`.
_WORD = re.compile(f"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:_|$)")


def module_path(name: str) -> str | None:
    """The dotted path of a canonical kohya name ("unet.…", "text_encoder.text_model.…"); None for unknown words."""
    for component, prefix in (*PREFIXES.items(), ("text_encoder", FIRST_TEXT_ENCODER_PREFIX)):
        if name.startswith(prefix):
            ending = BIAS_SUFFIX if name.endswith(BIAS_SUFFIX) else ""
            words = _split_words(name.removeprefix(prefix).removesuffix(ending))
            return None if words is None else ".".join((component, *words)) + ending
    return None


def _split_words(text: str) -> list[str] | None:
    words: list[str] = []
    position = 0
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            return None
        words.append(found[1])
        position = found.end()
    return words or None
