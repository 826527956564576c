"""Names of the UNet's modules in the original (LDM) checkpoints, which kohya uses for SDXL, too."""

from __future__ import annotations

import re

_LAYERS_PER_BLOCK = 2
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?$")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)(?:\.(.+))?$")
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def ldm_path(
    path: str, layers_per_block: int = _LAYERS_PER_BLOCK, up_blocks_without_attention: frozenset[int] = frozenset({2})
) -> str:
    """The original name of one of the UNet's modules, such as "input_blocks.4.1.transformer_blocks.0.attn1.to_q".

    Args:
        path: the module's path in diffusers' UNet.
        layers_per_block: of the UNet's configuration.
        up_blocks_without_attention: indices; SDXL's is the last, SD 1.x and 2.x have the first.

    Raises: ValueError: a module that the original does not have.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = _MIDDLE.match(path)
    if found:
        kind, index, rest = found[1], int(found[2]), found[3]
        place = f"middle_block.{2 * index}" if kind == "resnets" else f"middle_block.{2 * index + 1}"
        return _join(place, kind, rest)
    found = _BLOCK.match(path)
    if not found:
        raise ValueError(f"not a module of the original UNet: {path!r}")
    side, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    count = layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{count * (block + 1)}.0.{(rest or '').replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        place = 1 if block in up_blocks_without_attention else 2
        return f"output_blocks.{count * block + layers_per_block}.{place}.{rest}"
    number = count * block + index + (1 if side == "down" else 0)
    name = "input_blocks" if side == "down" else "output_blocks"
    return _join(f"{name}.{number}.{0 if kind == 'resnets' else 1}", kind, rest)


def _join(place: str, kind: str, rest: str | None) -> str:
    if rest and kind == "resnets":
        rest = _IN_RESNET[rest]
    return f"{place}.{rest}" if rest else place
