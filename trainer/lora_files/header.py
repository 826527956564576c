"""The header of a `.safetensors` file, parsed without torch and without trusting it.

8 bytes length N (little endian), N bytes of JSON, then the tensors' bytes without holes or overlaps.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import LoraFileError

MAX_HEADER_BYTES = 100_000_000
"""The limit that other readers have, too."""
DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_SCALAR_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


class TensorEntry(NamedTuple):
    """A tensor of a file: how it is stored, and where (offsets from the start of the file)."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """The metadata, and dtype and shape of every tensor, in file order.

    Raises: LoraFileError: the file is missing, truncated, damaged, or another kind of file under this name.
    """
    metadata, entries = read_entries(path)
    return metadata, {key: (entry.dtype, entry.shape) for key, entry in entries.items()}


def read_entries(path: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Like `read_header`, with the tensors' places in the file."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as handle:
            start = handle.read(64)
            length = _header_length(start, size, path)
            handle.seek(8)
            raw = handle.read(length)
    except OSError as error:
        raise LoraFileError(
            "The file cannot be read.", where=str(path), fix="Check that it exists and that you may open it."
        ) from error
    document = _parse_json(raw, path)
    metadata = _metadata(document.pop("__metadata__", {}), path)
    entries = {key: _entry(key, value, 8 + length, path) for key, value in document.items()}
    _check_cover(entries, 8 + length, size, path)
    return metadata, entries


def data_start(path: Path) -> int:
    """Where the tensors' bytes begin in a file whose header was accepted."""
    with open(path, "rb") as handle:
        return 8 + int(struct.unpack("<Q", handle.read(8))[0])


def read_scalars(path: Path, entries: dict[str, TensorEntry], keys: Iterable[str]) -> dict[str, float]:
    """The values of tensors with one element; keys of other tensors, and of exotic dtypes, are left out."""
    values: dict[str, float] = {}
    with open(path, "rb") as handle:
        for key in keys:
            entry = entries[key]
            if math.prod(entry.shape) != 1:
                continue
            handle.seek(entry.begin)
            raw = handle.read(entry.end - entry.begin)
            if entry.dtype == "BF16":
                # The upper half of a float32.
                values[key] = struct.unpack("<f", b"\x00\x00" + raw)[0]
            elif entry.dtype in _SCALAR_FORMATS:
                values[key] = float(struct.unpack(_SCALAR_FORMATS[entry.dtype], raw)[0])
    return values


def _header_length(start: bytes, size: int, path: Path) -> int:
    if start.startswith(b"version https://git-lfs"):
        raise _refusal(
            path, "This is a pointer to a file in Git LFS, not the file itself.", "Download the file itself."
        )
    if start[:15].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _refusal(path, "This is a web page, not a LoRA: the download went wrong.", "Download the file again.")
    if len(start) < 10:
        raise _refusal(path, "The file is empty or truncated.")
    # A length whose lowest byte is 0x80 or 'P' is legal, so byte 8 decides.
    if start[8:9] != b"{":
        if start.startswith((b"PK", b"\x80")):
            raise _refusal(
                path,
                "This is a pickle (.pt, .ckpt) under the name .safetensors; such files can run programs and are not opened.",
                "Get the .safetensors version from the author.",
            )
        raise _refusal(path, "This is not a safetensors file.", "Choose a LoRA in .safetensors format.")
    length = int(struct.unpack("<Q", start[:8])[0])
    if length > MAX_HEADER_BYTES:
        raise _refusal(path, f"The header claims {length:,} bytes; more than {MAX_HEADER_BYTES:,} are not read.")
    if 8 + length > size:
        raise _refusal(path, "The file is truncated: its header is not complete.")
    return length


def _parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8")
        document = json.loads(text)
        if not _is_plainly_unique(text, document):
            document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _refusal(path, f"The header is damaged ({error}).") from error
    if not isinstance(document, dict):
        raise _refusal(path, "The header is damaged: it is not a table.")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _is_plainly_unique(text: str, document: Any) -> bool:
    """Whether each tensor's three words stand in the text as often as there are tensors: then no key stands twice.

    What this is not sure of is parsed once more, which takes twice as long: folders hold thousands of files.
    """
    if not isinstance(document, dict):
        return True
    has_metadata = "__metadata__" in document
    if has_metadata:
        # Among the user's texts any word may stand; `_unique` looks at them alone.
        found = re.search(r'"__metadata__"\s*:\s*', text)
        if found is None:
            return False
        json.JSONDecoder(object_pairs_hook=_unique).raw_decode(text, found.end())
    words = ('"dtype"', '"shape"', '"data_offsets"')
    return text.count('"__metadata__"') == has_metadata and all(
        text.count(word) == len(document) - has_metadata for word in words
    )


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _refusal(path, "The header is damaged: its metadata are not texts.")
    return value


def _entry(key: str, value: Any, start: int, path: Path) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        for number in (*shape, begin, end):
            if type(number) is not int or number < 0:
                raise ValueError("a size is not a natural number")
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"unknown number format {dtype!r}")
        if end - begin != math.prod(shape) * DTYPE_BYTES[dtype]:
            raise ValueError("its size does not go with its shape")
    except (KeyError, TypeError, ValueError) as error:
        raise _refusal(path, f"The header is damaged at tensor {key[:200]!r}: {error}.") from error
    return TensorEntry(dtype, shape, start + begin, start + end)


def _check_cover(entries: dict[str, TensorEntry], start: int, size: int, path: Path) -> None:
    position = start
    for entry in sorted(entries.values(), key=itemgetter(2, 3)):
        if entry.begin != position:
            raise _refusal(path, "The file is damaged: its tensors overlap or leave holes.")
        position = entry.end
    if position > size:
        raise _refusal(path, f"The file is truncated: {position - size:,} bytes are missing.")
    if position < size:
        raise _refusal(path, f"The file is damaged: {size - position:,} bytes at its end belong to nothing.")


def _refusal(path: Path, message: str, fix: str = "Download or copy the file again.") -> LoraFileError:
    return LoraFileError(message, where=str(path), fix=fix)
