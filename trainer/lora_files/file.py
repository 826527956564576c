"""LoRA files to tensors and back. Writing always ends with reading back and comparing."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.errors import Finding, LoraFileError
from trainer.files import require_free, write_bytes
from trainer.lora_files.formats import split_keys
from trainer.lora_files.formats.diffusers import alphas_from_metadata
from trainer.lora_files.formats.kohya import kohya_key, kohya_name
from trainer.lora_files.header import data_start, read_header
from trainer.lora_files.modules import LoraModule

__all__ = ["DTYPES", "LoraFile", "LoraModule", "read_lora", "write_lora"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_FLOATING = {"F64", "F32", "F16", "BF16"}
_LEGACY_HASH_OFFSET, _LEGACY_HASH_LENGTH = 0x100000, 0x10000


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read.

    Attributes:
        modules: by their kohya names; `trainer.lora_files.matching` finds the model's layers for them.
        metadata: as in the file.
        layout: the name of the format it was in.
        lacks_alpha: whether the file did not say its alpha, so that the rank was taken (scale 1).
    """

    path: Path
    modules: dict[str, LoraModule]
    metadata: dict[str, str] = field(default_factory=dict)
    layout: str = "kohya"
    lacks_alpha: bool = False


def read_lora(path: Path) -> LoraFile:
    """Read a plain LoRA or LoCon in kohya, diffusers or peft-in-diffusers layout.

    Raises: LoraFileError: the file cannot be read, is of another kind or for another architecture, lacks a part, or
        holds NaN, Inf or a layer of rank 0.
    """
    metadata, header = read_header(path)
    where = str(path)
    layout, keys = split_keys(header, where)
    odd = [key for key, (dtype, _) in header.items() if dtype not in _FLOATING and not key.endswith(".alpha")]
    if odd:
        raise LoraFileError(f"The tensor '{odd[0]}' is stored as {header[odd[0]][0]}, which no LoRA is.", where=where)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise LoraFileError(f"The file cannot be read ({error}).", where=where, fix="Get the file again.") from error
    _require_finite(tensors, where)
    ranks = {name: header[parts["down"]][1][0] if header[parts["down"]][1] else 0 for name, parts in keys.items()}
    alphas = alphas_from_metadata(metadata, ranks, where)
    modules: dict[str, LoraModule] = {}
    lacks_alpha = False
    for name, parts in keys.items():
        down, up = tensors[parts["down"]], tensors[parts["up"]]
        _check_shapes(name, down, up, where)
        if "alpha" in parts:
            alpha = _alpha(tensors[parts["alpha"]], name, where)
        else:
            lacks_alpha = lacks_alpha or name not in alphas
            alpha = alphas.get(name, float(ranks[name]))
        modules[name] = LoraModule(down, up, alpha or float(ranks[name]))
    return LoraFile(path, modules, metadata, layout, lacks_alpha)


def _require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    # The sum is NaN or Inf if any element is; float64 cannot overflow here.
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor.sum(dtype=torch.float64))]
    if broken:
        raise LoraFileError(
            f"The LoRA holds NaN or infinite numbers in {len(broken)} of {len(tensors)} tensors: its training failed.",
            where=where,
            fix="Use an earlier version of it, or train again with a lower learning rate.",
            findings=[Finding(key, "not finite") for key in broken],
        )


def _check_shapes(name: str, down: Tensor, up: Tensor, where: str) -> None:
    sizes = f"down {tuple(down.shape)}, up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4):
        raise LoraFileError(f"The layer '{name}' has matrices of no known shape ({sizes}).", where=where)
    if down.shape[0] == 0:
        raise LoraFileError(f"The layer '{name}' has rank 0.", where=where, fix="The file is broken; get another.")
    if up.shape[1] != down.shape[0] or any(side != 1 for side in up.shape[2:]):
        raise LoraFileError(f"The two matrices of the layer '{name}' do not go together ({sizes}).", where=where)


def _alpha(tensor: Tensor, name: str, where: str) -> float:
    if tensor.numel() != 1:
        raise LoraFileError(f"The alpha of the layer '{name}' is not one number.", where=where)
    return float(tensor.item())


def write_lora(
    path: Path, modules: Mapping[str, LoraModule], metadata: Mapping[str, str], dtype: str | torch.dtype
) -> None:
    """Write the kohya layout atomically, then read it back and compare.

    Alphas that differ within the UNet, or within the text encoder, are made equal by scaling `up`: diffusers ignores
    an attention layer's alpha that differs from the others. The hashes of the data are added to the metadata.

    Args:
        path: where to; replaced if it exists.
        modules: by module path ("unet.…", "text_encoder.…").
        metadata: texts; see `trainer.lora_files.metadata.build_metadata`.
        dtype: "fp16", "bf16", "fp32", or the torch type.

    Raises: LoraFileError: nothing to write, a weight is NaN or too large for `dtype`, or the written file differs.
    """
    where = str(path)
    if not modules:
        raise LoraFileError("There is nothing to save: the LoRA has no layers.", where=where)
    tensors = _to_tensors(modules, DTYPES[dtype] if isinstance(dtype, str) else dtype, where)
    data = _serialize(tensors, metadata)
    require_free(path.parent, len(data), "the LoRA file")
    write_bytes(path, data, "the LoRA file")
    _verify(path, tensors)


def _to_tensors(modules: Mapping[str, LoraModule], dtype: torch.dtype, where: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module_path, module in _with_uniform_alpha(modules).items():
        if not (torch.isfinite(module.down).all() and torch.isfinite(module.up).all()):
            raise LoraFileError(
                f"The LoRA holds NaN or infinite numbers (layer '{module_path}') and was not saved.",
                where=where,
                fix="Go back to an earlier checkpoint, and train with a lower learning rate.",
            )
        _check_shapes(kohya_name(module_path), module.down, module.up, where)
        values = {"down": module.down, "up": module.up, "alpha": torch.tensor(module.alpha)}
        for part in ("down", "up", "alpha"):
            # `copy` even where nothing changes: the writer refuses shared storage.
            value = values[part].detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
            if not torch.isfinite(value).all():
                raise LoraFileError(
                    f"The weights of layer '{module_path}' are too large for this number format.",
                    where=where,
                    fix="Choose bf16 or fp32 under save.precision.",
                )
            tensors[kohya_key(module_path, part)] = value
    return tensors


def _with_uniform_alpha(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """The same changes of weights with one alpha for the UNet and one for the text encoder: the commonest."""
    common: dict[str, float] = {}
    for component in ("unet", "text_encoder"):
        alphas = Counter(module.alpha for path, module in modules.items() if path.startswith(f"{component}."))
        if alphas:
            common[component] = alphas.most_common(1)[0][0]
    result: dict[str, LoraModule] = {}
    for path, module in modules.items():
        alpha = common[path.partition(".")[0]] if path.startswith(("unet.", "text_encoder.")) else module.alpha
        up = module.up if module.alpha == alpha else module.up * (module.alpha / alpha)
        result[path] = LoraModule(module.down, up, alpha)
    return result


def _serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file's bytes, with the hashes among the metadata. Equal input gives equal bytes."""
    plain = save(dict(tensors))
    length = int(struct.unpack("<Q", plain[:8])[0])
    header, data = json.loads(plain[8 : 8 + length]), plain[8 + length :]
    digest = hashlib.sha256(data).hexdigest()
    # kohya's definition: 64 KiB from 1 MiB on of the file as it were with the ss_* metadata only.
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    offset = _LEGACY_HASH_OFFSET - len(_header_bytes(header, training_only))
    window = data[max(0, offset) : max(0, offset + _LEGACY_HASH_LENGTH)] if offset >= 0 else b""
    hashes = {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(window).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return _header_bytes(header, {**metadata, **hashes}) + data


def _header_bytes(header: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    document = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The tensors' bytes begin at a multiple of 8, as in files of the reference writer.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _verify(path: Path, tensors: Mapping[str, Tensor]) -> None:
    def refuse(message: str) -> LoraFileError:
        return LoraFileError(
            f"The saved LoRA is not what it should be: {message}.",
            where=str(path),
            fix="Check the disk, then save again.",
        )

    metadata, header = read_header(path)
    if header.keys() != tensors.keys():
        raise refuse("layers are missing")
    with open(path, "rb") as handle:
        handle.seek(data_start(path))
        if hashlib.file_digest(handle, "sha256").hexdigest() != metadata.get("sshs_model_hash"):
            raise refuse("the hash differs")
    for key, written in load_file(path).items():
        # Bit for bit; `equal` is false for NaN, too.
        if written.dtype != tensors[key].dtype or not torch.equal(written, tensors[key]):
            raise refuse(f"'{key}' differs")
    read_lora(path)
