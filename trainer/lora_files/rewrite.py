"""Metadata of a file: changed by rewriting the header; the tensors' bytes are copied as they are. No torch."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import LoraFileError
from trainer.files import require_free, write_atomically
from trainer.lora_files.header import MAX_HEADER_BYTES, data_start, read_entries, read_header

_LEGACY_HASH_OFFSET, _LEGACY_HASH_LENGTH = 0x100000, 0x10000
LEGACY_HASH_KEY = "sshs_legacy_hash"
_KEPT_WHEN_PRIVATE = (
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
    "ss_output_name", "ss_clip_skip", "ss_resolution", "sshs_model_hash", LEGACY_HASH_KEY, "format", "lora_adapter_metadata",
    "inkwash.version",
)  # fmt: skip
"""What programs need to use a file. All else goes: other programs' fields may hold paths, names and captions."""
_KEPT_PREFIX = "modelspec."


def header_bytes(header: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    """Length and text of a safetensors header; equal input gives equal bytes."""
    document = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The tensors' bytes begin at a multiple of 8, as in files of the reference writer.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def legacy_window(header: Mapping[str, object], metadata: Mapping[str, str]) -> slice:
    """The part of the tensors' bytes that kohya's short hash is over: 64 KiB from 1 MiB on of the file as it were with
    the `ss_*` metadata only."""
    training_only = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    offset = _LEGACY_HASH_OFFSET - len(header_bytes(header, training_only))
    return slice(max(0, offset), max(0, offset + _LEGACY_HASH_LENGTH)) if offset >= 0 else slice(0, 0)


def without_private(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that programs need, and `modelspec.*`, which the author wrote to be read."""
    return {key: value for key, value in metadata.items() if key in _KEPT_WHEN_PRIVATE or key.startswith(_KEPT_PREFIX)}


def changed_metadata(
    metadata: Mapping[str, str], set_to: Mapping[str, str], remove: Sequence[str] = (), *, strip_private: bool = False
) -> dict[str, str]:
    """The metadata after the changes; what is set is set after stripping.

    Raises: LoraFileError: a key to remove is not there, or a hash, which follows from the tensors, would be set.
    """
    missing = [key for key in remove if key not in metadata]
    if missing:
        raise LoraFileError(f"The file has no metadata '{missing[0]}'.", fix="`inkwash lora metadata FILE` lists them.")
    hashes = [key for key in set_to if key.startswith("sshs_") or key == "modelspec.hash_sha256"]
    if hashes:
        raise LoraFileError(f"'{hashes[0]}' follows from the tensors and cannot be set.")
    kept = without_private(metadata) if strip_private else dict(metadata)
    return {key: value for key, value in kept.items() if key not in remove} | dict(set_to)


def rewrite_metadata(path: Path, metadata: Mapping[str, str], out: Path | None = None) -> Path:
    """Write the file with these metadata, in place or to `out`, atomically; then compare the tensors' bytes.

    kohya's short hash, which depends on the metadata, is brought up to date where the file has it.

    Raises: LoraFileError: the file cannot be read, the metadata are too large, or the written file differs.
        ResourceError: the disk is full.
    """
    _, entries = read_entries(path)
    start = data_start(path)
    header = {
        key: {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin - start, entry.end - start],
        }
        for key, entry in entries.items()
    }
    texts = dict(metadata)
    if LEGACY_HASH_KEY in texts:
        window = legacy_window(header, texts)
        with open(path, "rb") as handle:
            handle.seek(start + window.start)
            texts[LEGACY_HASH_KEY] = hashlib.sha256(handle.read(window.stop - window.start)).hexdigest()[:8]
    top = header_bytes(header, texts)
    if len(top) > MAX_HEADER_BYTES:
        raise LoraFileError("The metadata are too large: other programs would not read the file.", where=str(path))
    target = out or path
    require_free(target.parent, path.stat().st_size + len(top), "the LoRA file")

    def write(temporary: Path) -> None:
        with open(path, "rb") as source, open(temporary, "wb") as sink:
            sink.write(top)
            source.seek(start)
            shutil.copyfileobj(source, sink, 1 << 20)
        _verify(path, start, temporary, len(top), texts)

    write_atomically(target, write, "the LoRA file")
    return target


def _verify(path: Path, start: int, written: Path, written_start: int, metadata: Mapping[str, str]) -> None:
    found, header = read_header(written)
    is_equal = found == metadata and header == read_header(path)[1]
    if not is_equal or _data_hash(path, start) != _data_hash(written, written_start):
        raise LoraFileError("The written file differs; nothing was changed.", where=str(path), fix="Check the disk.")


def _data_hash(path: Path, start: int) -> bytes:
    with open(path, "rb") as handle:
        handle.seek(start)
        return hashlib.file_digest(handle, "sha256").digest()
