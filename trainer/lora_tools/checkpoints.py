"""Base models as files: which tensor, and which rows of it, is the weight that a LoRA's layer changes.

Reads single files and diffusers folders, of safetensors only, one tensor at a time.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import LoraFileError, ModelFileError
from trainer.lora_files.header import TensorEntry, read_entries
from trainer.lora_files.names import BIAS_SUFFIX, UNET_PREFIX
from trainer.lora_tools.names import common_name

_CLIP = r"(?:text_model\.)?(encoder\.layers\.\d+\..+|text_projection|final_layer_norm|embeddings\..+)"
_RESBLOCK = re.compile(
    r"transformer\.resblocks\.(\d+)\.(attn\.in_proj_|attn\.out_proj\.|mlp\.c_fc\.|mlp\.c_proj\.|ln_1\.|ln_2\.)(weight|bias)"
)
_RESBLOCK_PARTS = {
    "attn.out_proj.": "self_attn_out_proj",
    "mlp.c_fc.": "mlp_fc1",
    "mlp.c_proj.": "mlp_fc2",
    "ln_1.": "layer_norm1",
    "ln_2.": "layer_norm2",
}
_FLOATING = ("F64", "F32", "F16", "BF16")
# Prefix in a single file, and of the text encoder's names; transformers' keys or OpenCLIP's.
_SINGLE_FILE_ENCODERS = (
    ("cond_stage_model.transformer.", "lora_te_", False),
    ("cond_stage_model.model.", "lora_te_", True),
    ("conditioner.embedders.0.transformer.", "lora_te_", False),
    ("conditioner.embedders.1.model.", "lora_te2_", True),
)
_UNET_PREFIXES = ("model.diffusion_model.", "")
_UNET_START = re.compile(
    r"(input_blocks|middle_block|output_blocks|down_blocks|mid_block|up_blocks|time_embed|conv_in|label_emb)"
)


@dataclass(frozen=True)
class Slot:
    """Where a layer's weight lies.

    Attributes:
        file: of the checkpoint.
        key: of the tensor.
        rows: the part of the tensor's first side, where several layers share a tensor (OpenCLIP's q, k and v).
        is_transposed: whether the tensor is `(in, out)`.
        shape: of the weight as the layer has it.
    """

    file: Path
    key: str
    rows: tuple[int, int] | None
    is_transposed: bool
    shape: tuple[int, ...]


class Checkpoint:
    """The weights of a base model on disk.

    Args:
        path: a `.safetensors` file, or a diffusers folder.

    Raises: ModelFileError: it is neither, cannot be read, or has no weights that a LoRA could change.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        self.entries: dict[Path, dict[str, TensorEntry]] = {}
        self.slots: dict[str, Slot] = {}
        self.file_slots: dict[Path, dict[str, Slot]] = {}
        self.file_metadata: dict[Path, dict[str, str]] = {}
        self._open = ExitStack()
        self._handles: dict[Path, Any] = {}
        parts = _folder_parts(path) if self.is_folder else {path: ""}
        for file, part in parts.items():
            self.file_metadata[file], self.entries[file] = _read(file)
            found = self.file_slots[file] = {}
            for key, entry in self.entries[file].items():
                if entry.dtype in _FLOATING:
                    found.update(_slots(file, part, key, entry))
            # A folder may hold a component twice, in fp32 and as its fp16 variant; the first is read.
            self.slots = found | self.slots
        if not self.slots:
            raise ModelFileError(
                "This file holds no weights of a Stable Diffusion model.",
                where=str(path),
                fix="Choose a checkpoint (.safetensors) or a diffusers folder.",
            )

    @property
    def is_xl(self) -> bool:
        """Whether it has a second text encoder, or the UNet's input for picture sizes that comes with it."""
        return any(name.startswith(("lora_te2_", "lora_unet_add_embedding")) for name in self.slots)

    def tensor(self, file: Path, key: str) -> Tensor:
        """A tensor as it is stored."""
        if file not in self._handles:
            try:
                self._handles[file] = self._open.enter_context(safe_open(file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelFileError(
                    f"The checkpoint cannot be read ({error}).", where=str(file), fix="Copy the file again."
                ) from error
        return self._handles[file].get_tensor(key)

    def stored_weight(self, name: str) -> Tensor:
        """A layer's weight in its number format, by its common name. Raises KeyError."""
        slot = self.slots[name]
        return part_of(self.tensor(slot.file, slot.key), slot)

    def weight(self, name: str) -> Tensor:
        """A layer's weight in float32, by its common name. Raises KeyError."""
        return self.stored_weight(name).to(torch.float32)

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()
        self._handles.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _read(file: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    if file.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelFileError(
            "This checkpoint is a pickle, which can run programs and is not opened.",
            where=str(file),
            fix="Use the .safetensors version.",
        )
    try:
        return read_entries(file)
    except LoraFileError as error:
        message = error.message.replace(", not a LoRA", "")
        raise ModelFileError(message, where=str(file), fix="Download or copy the checkpoint again.") from error


def _folder_parts(folder: Path) -> dict[Path, str]:
    """The weight files of a diffusers folder, each with the prefix of its layers' names."""
    parts: dict[Path, str] = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_"), ("text_encoder_2", "lora_te2_")):
        if (folder / part).is_dir():
            # Plain ones before variants ("model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors").
            files = sorted((folder / part).glob("*.safetensors"), key=lambda file: (file.name.count("."), file.name))
            parts |= dict.fromkeys(files, prefix)
    if not any(prefix == "lora_unet_" for prefix in parts.values()):
        raise ModelFileError(
            "This folder holds no UNet in safetensors format.",
            where=str(folder),
            fix="Choose a diffusers folder, or a single .safetensors file.",
        )
    return parts


def _slots(file: Path, part: str, key: str, entry: TensorEntry) -> dict[str, Slot]:
    """The layers whose weights lie in a tensor, by common name."""
    plain = Slot(file, key, None, False, entry.shape)
    if len(entry.shape) not in (1, 2, 4) or not key.endswith((".weight", "bias", "in_proj_weight", "text_projection")):
        return {}
    if part:
        return _named(part, key, plain)
    for start, prefix, is_open_clip in _SINGLE_FILE_ENCODERS:
        if key.startswith(start):
            rest = key[len(start) :]
            return _open_clip(prefix, rest, plain) if is_open_clip else _named(prefix, rest, plain)
    for start in _UNET_PREFIXES:
        rest = key[len(start) :]
        if key.startswith(start) and _UNET_START.match(rest):
            return _named("lora_unet_", rest, plain)
    return {}


def _named(prefix: str, key: str, slot: Slot) -> dict[str, Slot]:
    path, ending = (key.removesuffix(BIAS_SUFFIX), BIAS_SUFFIX) if key.endswith(BIAS_SUFFIX) else (key, "")
    path = path.removesuffix(".weight")
    if prefix == UNET_PREFIX:
        return {common_name(prefix + path.replace(".", "_")) + ending: slot}
    found = re.fullmatch(_CLIP, path)
    if not found or "embedding" in path:
        return {}
    level = "" if found[1] == "text_projection" else "text_model_"
    return {f"{prefix}{level}{found[1].replace('.', '_')}{ending}": slot}


def _open_clip(prefix: str, key: str, slot: Slot) -> dict[str, Slot]:
    if key == "text_projection":
        return {f"{prefix}text_projection": Slot(slot.file, slot.key, None, True, slot.shape[::-1])}
    found = _RESBLOCK.fullmatch(key)
    if not found:
        return {}
    layer = f"{prefix}text_model_encoder_layers_{found[1]}_"
    ending = BIAS_SUFFIX if found[3] == "bias" else ""
    if found[2] != "attn.in_proj_":
        return {layer + _RESBLOCK_PARTS[found[2]] + ending: slot}
    width = slot.shape[0] // 3
    return {
        f"{layer}self_attn_{letter}_proj{ending}": Slot(
            slot.file, slot.key, (index * width, (index + 1) * width), False, (width, *slot.shape[1:])
        )
        for index, letter in enumerate("qkv")
    }


def part_of(tensor: Tensor, slot: Slot) -> Tensor:
    """A view of the layer's weight in its tensor: what is written to it changes the tensor."""
    rows = tensor[slot.rows[0] : slot.rows[1]] if slot.rows else tensor
    return rows.T if slot.is_transposed else rows
