"""A safetensors file written anew with some of its tensors changed, one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from trainer.errors import ModelFileError
from trainer.files import require_free, write_atomically
from trainer.lora_files.header import DTYPE_BYTES, TensorEntry, read_entries

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Number formats of weights, by their names in a file."""
_CHUNK = 1 << 24


def rewrite_tensors(
    source: Path,
    target: Path,
    changes: Mapping[str, Callable[[], Tensor]],
    metadata: Mapping[str, str],
    dtype: str | None = None,
) -> None:
    """Write `source` to `target` with the tensors in `changes` replaced; the others byte for byte.

    The file appears whole or not at all, and what was written is read back and compared first.

    Args:
        source: a file whose header was accepted.
        target: where to; replaced if it exists.
        changes: by key, what makes the new tensor, of the old one's shape; called once, in the file's order.
        metadata: of the new file.
        dtype: a key of TORCH_DTYPES that all weights are converted to; None keeps each tensor's own.

    Raises: ModelFileError: a new number is not finite or too large for its format, or the written file differs.
        ResourceError: the disk is full.
    """
    entries = dict(sorted(read_entries(source)[1].items(), key=lambda item: item[1].begin))
    formats = {key: (dtype if dtype and entry.dtype in TORCH_DTYPES else entry.dtype) for key, entry in entries.items()}
    header = _header(entries, formats, metadata)
    size = len(header) + sum(_bytes(entry, formats[key]) for key, entry in entries.items())
    require_free(target.parent, size, "the checkpoint")
    write_atomically(target, lambda path: _write(source, path, entries, formats, header, changes), "the checkpoint")


def _write(
    source: Path,
    target: Path,
    entries: Mapping[str, TensorEntry],
    formats: Mapping[str, str],
    header: bytes,
    changes: Mapping[str, Callable[[], Tensor]],
) -> None:
    digest = hashlib.sha256(header)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        writer.write(header)
        for key, entry in entries.items():
            if key not in changes and formats[key] == entry.dtype:
                _copy(reader, writer, entry, digest)
                continue
            tensor = changes[key]() if key in changes else _read(reader, entry)
            data = _to_bytes(tensor, TORCH_DTYPES[formats[key]], key, target)
            if len(data) != _bytes(entry, formats[key]):
                raise ValueError(f"the new tensor '{key}' has another shape")
            digest.update(data)
            writer.write(data)
    with open(target, "rb") as handle:
        if hashlib.file_digest(handle, "sha256").digest() != digest.digest():
            raise ModelFileError(
                "The written checkpoint is not what it should be.",
                where=str(target),
                fix="Check the disk, then try again.",
            )
    if read_entries(target)[1].keys() != entries.keys():
        raise ModelFileError("The written checkpoint lacks tensors.", where=str(target), fix="Try again.")


def _header(entries: Mapping[str, TensorEntry], formats: Mapping[str, str], metadata: Mapping[str, str]) -> bytes:
    document: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key, entry in entries.items():
        end = position + _bytes(entry, formats[key])
        document[key] = {"dtype": formats[key], "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The tensors' bytes begin at a multiple of 8, as in files of the reference writer.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes(entry: TensorEntry, dtype: str) -> int:
    return (entry.end - entry.begin) // DTYPE_BYTES[entry.dtype] * DTYPE_BYTES[dtype]


def _copy(reader: BinaryIO, writer: BinaryIO, entry: TensorEntry, digest: hashlib._Hash) -> None:
    reader.seek(entry.begin)
    left = entry.end - entry.begin
    while left:
        chunk = reader.read(min(_CHUNK, left))
        if not chunk:
            raise OSError("the source ended early")
        digest.update(chunk)
        writer.write(chunk)
        left -= len(chunk)


def _read(reader: BinaryIO, entry: TensorEntry) -> Tensor:
    reader.seek(entry.begin)
    data = bytearray(reader.read(entry.end - entry.begin))
    if not data:
        return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)


def _to_bytes(tensor: Tensor, dtype: torch.dtype, key: str, target: Path) -> bytes:
    value = tensor.to(dtype).contiguous()
    if not torch.isfinite(value).all():
        raise ModelFileError(
            f"The weight '{key}' would hold NaN or infinite numbers.",
            where=str(target),
            fix="Use lower weights, or write bf16 or fp32.",
        )
    # Through bytes: numpy has no bf16.
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()
