"""Modules to LoRA files. Writing always ends with reading back and comparing."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.files import require_free, write_atomically, write_json
from trainer.lora_files.embeddings import Embedding, bundled_tensors
from trainer.lora_files.formats.settings import ALPHA_METADATA_KEY, PEFT_CONFIG
from trainer.lora_files.header import data_start, read_header
from trainer.lora_files.layouts import LAYOUTS, canonical_modules, facts_of, is_xl
from trainer.lora_files.modules import AdapterModule
from trainer.lora_files.names import module_path
from trainer.lora_files.reading import read_lora
from trainer.lora_files.rewrite import LEGACY_HASH_KEY, header_bytes, legacy_window

DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def write_lora(
    path: Path,
    modules: Mapping[str, AdapterModule],
    metadata: Mapping[str, str],
    dtype: str | torch.dtype,
    *,
    layout: str = "kohya",
    embeddings: Sequence[Embedding] = (),
) -> None:
    """Write a LoRA file atomically, then read it back and compare.

    In the kohya layout alphas that differ within the UNet, or within the text encoders, are made equal by scaling `up`:
    diffusers ignores an attention layer's alpha that differs from the others. The hashes of the data are added to the
    metadata.

    Args:
        path: where to; replaced if it exists. In the peft layout `adapter_config.json` is written beside it.
        modules: by module path ("unet.…", "text_encoder.…", "text_encoder_2.…") or by kohya name.
        metadata: texts; see `trainer.lora_files.metadata.build_metadata`.
        dtype: "fp16", "bf16", "fp32", or the torch type.
        layout: one of `trainer.lora_files.layouts.LAYOUTS`.
        embeddings: bundled with it, in float32; in the kohya layout only, which alone has a form for them.

    Raises: LoraFileError: nothing to write, a weight is NaN or too large for `dtype`, the layout does not hold a kind,
        or the written file differs.
    """
    where = str(path)
    if not modules:
        raise LoraFileError("There is nothing to save: the LoRA has no layers.", where=where)
    named = canonical_modules(modules)
    if len(named) != len(modules):
        raise LoraFileError("Two layers have the same name.", where=where)
    _require_sound(named, where)
    prepared = LAYOUTS[layout].prepare(named, where)
    texts = {key: value for key, value in metadata.items() if key != ALPHA_METADATA_KEY}
    tensors = _to_tensors(prepared, texts, DTYPES[dtype] if isinstance(dtype, str) else dtype, layout, where)
    for embedding in embeddings:
        if layout != "kohya":
            raise LoraFileError("Only the kohya layout bundles embeddings.", where=where)
        tensors |= bundled_tensors(embedding)
    data = _serialize(tensors, texts)
    require_free(path.parent, len(data), "the LoRA file")

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)
        _verify(temporary, tensors, prepared, where)

    # Checked before it takes its name: a file that is there already is replaced by a right one or not at all.
    write_atomically(path, write, "the LoRA file")
    if layout == "peft":
        write_json(path.parent / PEFT_CONFIG, _peft_config(prepared), "the LoRA's settings")


def _require_sound(modules: Mapping[str, AdapterModule], where: str) -> None:
    for name, module in modules.items():
        if not all(torch.isfinite(tensor).all() for tensor in module.tensors().values()):
            raise LoraFileError(
                f"The LoRA holds NaN or infinite numbers (layer '{name}') and was not saved.",
                where=where,
                fix="Go back to an earlier checkpoint, and train with a lower learning rate.",
            )
        try:
            facts_of(module)
        except ValueError as error:
            raise LoraFileError(f"The layer '{name}' {error}, and was not saved.", where=where) from error


def _to_tensors(
    modules: Mapping[str, AdapterModule], metadata: Mapping[str, str], dtype: torch.dtype, layout: str, where: str
) -> dict[str, Tensor]:
    for_xl = is_xl(modules, metadata)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, tensor in LAYOUTS[layout].tensors(name, module, for_xl).items():
            # `copy` even where nothing changes: the writer refuses shared storage.
            value = tensor.detach().to(device="cpu", dtype=dtype, copy=True).contiguous()
            if not torch.isfinite(value).all():
                raise LoraFileError(
                    f"The weights of layer '{name}' are too large for this number format.",
                    where=where,
                    fix="Choose bf16 or fp32 (in training: save.precision).",
                )
            if key in tensors:
                raise LoraFileError(f"Two layers would have the same key '{key}'.", where=where)
            tensors[key] = value
    return tensors


def _peft_config(modules: Mapping[str, AdapterModule]) -> dict[str, object]:
    """What the peft library reads beside the tensors; alpha equals the rank, because the scale is in `lora_B`."""
    ranks = {str(module_path(name)).partition(".")[2]: module.rank or 1 for name, module in modules.items()}
    rank = max(ranks.values())
    others = {path: value for path, value in ranks.items() if value != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "use_dora": any(module.kind == "dora" for module in modules.values()),
        "inference_mode": True,
    }


def _serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file's bytes, with the hashes among the metadata. Equal input gives equal bytes."""
    plain = save(dict(tensors))
    length = int(struct.unpack("<Q", plain[:8])[0])
    header, data = json.loads(plain[8 : 8 + length]), plain[8 + length :]
    digest = hashlib.sha256(data).hexdigest()
    window = data[legacy_window(header, metadata)]
    hashes = {
        "sshs_model_hash": digest,
        LEGACY_HASH_KEY: hashlib.sha256(window).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{digest}",
    }
    return header_bytes(header, {**metadata, **hashes}) + data


def _verify(path: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, AdapterModule], where: str) -> None:
    def refuse(message: str) -> LoraFileError:
        return LoraFileError(
            f"The saved LoRA is not what it should be: {message}.",
            where=where,
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
    if _bare_names(read_lora(path).modules) != _bare_names(modules):
        raise refuse("its layers read back have other names")


def _bare_names(modules: Mapping[str, AdapterModule]) -> Counter[tuple[str, str]]:
    """Names without the model's part, which the peft library's files do not say, and kinds."""
    return Counter((re.sub(r"^lora_[a-z0-9]+_", "", name), module.kind) for name, module in modules.items())
