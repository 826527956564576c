"""The trained adapter as a LoRA file, in the run and in the library."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

from trainer.base_models import main_weights
from trainer.events import LoraExported
from trainer.files import file_sha256, require_free, safe_name, unused_path, write_atomically
from trainer.lora_files.file import write_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.metadata import TrainingFacts, build_metadata
from trainer.training.checkpoint import MARGIN_BYTES
from trainer.training.preview import preview_path
from trainer.training.state import TrainParts, TrainState

_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def export_name(parts: TrainParts, step: int, *, is_final: bool) -> str:
    """The file's name without its suffix: with the step in it where it is made along the way."""
    stem = safe_name(parts.name, "lora")
    return stem if is_final else f"{stem}-step{step:06d}"


def export_path(parts: TrainParts, step: int, *, is_final: bool) -> Path:
    """Where the file lies in the run. The file of a run that was finished before, and went on, has its steps in its name."""
    folder = parts.context.run.lora
    path = folder / f"{export_name(parts, step, is_final=is_final)}.safetensors"
    if is_final and path.exists() and read_header(path)[0].get("ss_steps") != str(step):
        return folder / f"{export_name(parts, step, is_final=False)}.safetensors"
    return path


def export_lora(parts: TrainParts, state: TrainState, *, is_final: bool) -> tuple[Path, Path]:
    """Write the LoRA file, checked by reading it back, and copy it to the library. Returns both paths.

    Raises: LoraFileError: a weight is NaN or too large for the format. ResourceError: the disk is full.
    """
    parts.context.stage("Saving the LoRA")
    path = export_path(parts, state.step, is_final=is_final)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (is_final and path.exists()):
        # A finished run that is resumed has its file already; writing it again would only change its times.
        # Twice: in the run and in the library.
        numbers = sum(weight.numel() for weight in parts.adapter.state_dict().values())
        require_free(path.parent, 2 * _BYTES[parts.config.save.precision] * numbers + MARGIN_BYTES, "the LoRA file")
        metadata = build_metadata(parts.config, _facts(parts, state))
        write_lora(path, parts.adapter.export_modules(), metadata, parts.config.save.precision)
    library_path = _add_to_library(path, parts.data.loras)
    _add_preview(library_path, preview_path(parts, state.step, 0))
    event = LoraExported(
        step=state.step,
        path=parts.relative(path),
        library_path=str(library_path),
        size_bytes=path.stat().st_size,
        note=parts.adapter.outcome(),
    )
    parts.context.emit(event)
    return path, library_path


def _facts(parts: TrainParts, state: TrainState) -> TrainingFacts:
    config = parts.config
    examples = parts.split.training
    tags = Counter(tag.strip() for example in examples for tag in example.caption.split(",") if tag.strip())
    weights = main_weights(parts.components.path)
    return TrainingFacts(
        name=safe_name(parts.name, "lora"),
        base_name=parts.components.name,
        steps=state.step,
        epochs=max(1, round(parts.epoch_at(state.step))),
        num_train_images=len(examples),
        width=config.data.resolution,
        height=config.data.resolution,
        started_at=state.started_at,
        finished_at=time.time(),
        trigger_word=config.data.trigger_word,
        base_sha256=file_sha256(weights) if weights else "",
        family=parts.components.family.name,
        prediction_type=parts.components.prediction_type,
        zero_terminal_snr=parts.components.zero_terminal_snr,
        tag_frequency={parts.dataset_name: dict(tags)},
    )


def _add_to_library(path: Path, library: Path) -> Path:
    """Copy a file to the library under a name that is free; one that is there already is not copied again."""
    size, digest = path.stat().st_size, file_sha256(path)
    for candidate in sorted(library.glob("*.safetensors")):
        if candidate.stat().st_size == size and file_sha256(candidate) == digest:
            return candidate
    target = unused_path(library / path.name)
    write_atomically(target, lambda temporary: shutil.copyfile(path, temporary), "the LoRA file")
    return target


def _add_preview(library_path: Path, picture: Path) -> None:
    """Put the first sample beside the file, as other programs do: `<name>.preview.png`."""
    if picture.exists():
        target = library_path.with_suffix(".preview.png")
        write_atomically(target, lambda temporary: shutil.copyfile(picture, temporary), "the preview picture")
