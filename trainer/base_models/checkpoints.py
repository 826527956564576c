"""Base models as single files, `.safetensors` or `.ckpt`, in the layout of the original checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import pickletools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.detection import CHANNELS_KEY, Detected, NotABaseModelError, Shapes, detect
from trainer.base_models.families import FAMILY_FACTS, VELOCITY_RESOLUTION
from trainer.base_models.folders import PRECISIONS
from trainer.base_models.info import BaseModelInfo, Traits
from trainer.errors import Finding, LoraFileError, ModelFileError
from trainer.files import is_file
from trainer.lora_files.header import TensorEntry, read_entries

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")
_MAX_NAMES_BYTES = 64 * 2**20
_MAX_SIDECAR_BYTES = 200_000
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10


@dataclass(frozen=True)
class CheckpointHeader:
    """What can be read of a single file without loading it. `precision` is that of most of its weights."""

    shapes: Shapes
    metadata: dict[str, str]
    precision: str


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a file that may be a single-file model, by its name."""
    return path.suffix.lower() in CHECKPOINT_SUFFIXES and is_file(path)


def read_checkpoint_header(path: Path) -> CheckpointHeader:
    """Names, shapes and metadata of a single file. Nothing in a `.ckpt` is executed: only its texts are listed.

    Raises: ModelFileError: it cannot be read, or is cut off.
    """
    if path.suffix.lower() == ".ckpt":
        return CheckpointHeader(_pickled_shapes(path), {}, "")
    metadata, tensors = read_model_entries(path)
    sizes: dict[str, int] = {}
    for entry in tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
    main = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return CheckpointHeader({key: entry.shape for key, entry in tensors.items()}, metadata, PRECISIONS.get(main, main))


def read_model_entries(path: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and tensors of a model's `.safetensors` file, checked as a LoRA's are. Raises ModelFileError."""
    try:
        return read_entries(path)
    except LoraFileError as error:
        message = error.message.replace("a LoRA", "a model")
        raise ModelFileError(message, where=str(path), fix="Download or copy the file again.") from error


def describe_checkpoint(path: Path) -> BaseModelInfo:
    """What is known of a single file without loading it. Raises NotABaseModelError."""
    traits, problem, metadata, precision = Traits(), "", {}, ""
    try:
        header = read_checkpoint_header(path)
        metadata, precision = header.metadata, header.precision
        detected = detect_checkpoint(path, header)
        traits = detected.traits
        _require_whole(path, detected, has_vae=True)
    except NotABaseModelError:
        raise
    except ModelFileError as error:
        problem = str(error)
    facts = FAMILY_FACTS[traits.family]
    has_velocity = traits.family == "sd2" and traits.prediction_type == "v_prediction"
    return BaseModelInfo(
        name=path.stem,
        title=metadata.get("modelspec.title", path.stem)[:200],
        path=path,
        traits=traits,
        resolution=VELOCITY_RESOLUTION if has_velocity else facts.resolution,
        description=metadata.get("modelspec.description", "")[:500],
        license=metadata.get("modelspec.license", "")[:200],
        precision=precision,
        size_bytes=path.stat().st_size,
        problem=problem,
    )


def detect_checkpoint(path: Path, header: CheckpointHeader) -> Detected:
    """What the file is. Raises ModelFileError as `detect` does."""
    return detect(header.shapes, header.metadata, str(path), _sidecar(path))


def check_checkpoint(path: Path, *, has_vae: bool = False) -> None:
    """Raise ModelFileError unless `path` is a whole model; `has_vae` says that its VAE comes from elsewhere."""
    _require_whole(path, detect_checkpoint(path, read_checkpoint_header(path)), has_vae=has_vae)


def _require_whole(path: Path, detected: Detected, *, has_vae: bool) -> None:
    missing = [part for part in detected.missing if not (part == "vae" and has_vae)]
    if missing:
        raise ModelFileError(
            f"The checkpoint '{path.name}' is not whole.",
            where=str(path),
            findings=[Finding(part, "is missing in the file") for part in missing],
            fix="Set a VAE for it (model.vae)."
            if missing == ["vae"]
            else "Choose a checkpoint with its text encoders in it.",
        )


def file_fingerprint(path: Path, part: str) -> str:
    """A key for caches that changes with a file: its size, its head, and 64 samples of the rest."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{part}:{size}:".encode())
    with open(path, "rb") as handle:
        for index in range(_SAMPLES):
            handle.seek(index * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1), os.SEEK_SET)
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _sidecar(path: Path) -> str:
    beside = path.with_suffix(".yaml")
    try:
        if beside.stat().st_size > _MAX_SIDECAR_BYTES:
            return ""
        return beside.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _pickled_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """All texts in a torch file's pickle, the tensors' names among them; of shapes only that of the UNet's first layer."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(item for item in archive.infolist() if item.filename.endswith("data.pkl"))
            if entry.file_size > _MAX_NAMES_BYTES:
                raise ValueError("its list of tensors is too long")
            content = archive.read(entry)
        operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(content)]
        shapes: dict[str, tuple[int, ...]] = {str(text): () for name, text in operations if "UNICODE" in name}
        return shapes | _first_layer(operations)
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
        raise ModelFileError(
            "The file cannot be read: it is damaged, or of a kind from before 2020.",
            where=str(path),
            fix="Get the model as .safetensors.",
        ) from error


def _first_layer(operations: Sequence[tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
    """The shape of the UNet's first convolution, which tells an inpainting model.

    Torch writes a tensor as its name, a reference to where its numbers are, and then where they begin and its shape.
    """
    names = iter(operations)
    if not any("UNICODE" in name and argument == CHANNELS_KEY for name, argument in names):
        return {}
    if not any(name == "BINPERSID" for name, _ in names):
        return {}
    numbers = (int(argument) for name, argument in names if name.startswith("BININT"))
    shape = tuple(itertools.islice(numbers, 1, 5))
    return {CHANNELS_KEY: shape} if len(shape) == 4 else {}
