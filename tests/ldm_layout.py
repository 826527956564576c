"""The way back: a diffusers model's tensors under the names and in the shapes of the original checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.ldm_names import ldm_path
from trainer.base_models import FAMILY_FACTS
from trainer.base_models.detection import TEXT_PREFIXES, UNET_PREFIX
from trainer.models import single_file

_VAE = (
    (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
_OPEN_CLIP = (
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn", "attn"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.", ""),
    (r"^final_layer_norm", "ln_final"),
)
State = Mapping[str, Tensor]


def unet_to_ldm(state: State, layers_per_block: int, without_attention: frozenset[int]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        inner = re.match(r"(.*(?:resnets|attentions)\.\d+\.[^.]+)(.*)", path)
        # `ldm_path` knows modules; what is below a transformer keeps its name.
        head, tail = (inner[1], inner[2]) if inner and "resnets" in path else (path, "")
        found[f"{UNET_PREFIX}{ldm_path(head, layers_per_block, without_attention)}{tail}.{kind}"] = tensor
    return found


def vae_to_ldm(state: State) -> dict[str, Tensor]:
    blocks = 1 + max(int(found[1]) for name in state if (found := re.search(r"up_blocks\.(\d+)", name)))
    ldm: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        for pattern, replacement in _VAE:
            new = re.sub(pattern, replacement, new)
        is_attention = ".attn_1." in new and tensor.ndim == 2
        ldm[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_attention else tensor
    return ldm


def clip_to_ldm(state: State, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def open_clip_to_ldm(state: State, prefix: str) -> dict[str, Tensor]:
    ldm: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            ldm[f"{prefix}text_projection"] = tensor.T.contiguous()
            continue
        found = re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if found:
            if found[2] == "q":
                parts = [state_get(state, name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
                ldm[f"{prefix}transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = torch.cat(parts)
            continue
        for pattern, replacement in _OPEN_CLIP:
            name = re.sub(pattern, replacement, name)
        ldm[prefix + name] = tensor
    return ldm


def state_get(state: State, name: str) -> Tensor:
    return state[name] if name in state else state[f"text_model.{name}"]


def model_to_ldm(
    family: str, parts: Mapping[str, State], layers_per_block: int, without_attention: frozenset[int]
) -> dict[str, Tensor]:
    """All tensors of a model (by part) as one checkpoint of its family."""
    ldm = unet_to_ldm(parts["unet"], layers_per_block, without_attention) | vae_to_ldm(parts["vae"])
    for name, prefix in TEXT_PREFIXES[family].items():
        convert = clip_to_ldm if prefix.endswith("transformer.") else open_clip_to_ldm
        ldm |= convert(parts[name], prefix)
    return ldm


def full_size(family: str) -> dict[str, State]:
    """Names and shapes of the published architecture, by part, from the bundled configurations; no data."""
    folder = single_file.CONFIGS / family
    models: dict[str, nn.Module] = {"unet": single_file._empty_unet(folder), "vae": single_file._empty_vae(folder)}
    for name in FAMILY_FACTS[family].text_encoders:
        models[name] = single_file.empty_text_encoder(folder, name)
    return {part: {k: v.to("meta") for k, v in model.state_dict().items()} for part, model in models.items()}


def full_checkpoint(family: str) -> dict[str, Tensor]:
    """All tensors of a published checkpoint by their names there, without data."""
    return model_to_ldm(family, full_size(family), 2, frozenset({2} if family == "sdxl" else {0}))


def tiny_checkpoint(folder: Path, path: Path, family: str, **extra: Tensor) -> Path:
    """Write `tests.tiny_model`'s folder as a single file."""
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
    names = ("unet", "vae", *TEXT_PREFIXES[family])
    parts = {name: load_file(folder / name / f"{stems.get(name, 'model')}.safetensors") for name in names}
    tensors = model_to_ldm(family, parts, 1, frozenset({0})) | extra
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
