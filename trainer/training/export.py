"""The trained adapter as a LoRA file, in the run and in the library."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.adapters.method import num_kept
from trainer.base_models import main_weights
from trainer.config.run import RunConfig
from trainer.data.examples import Example
from trainer.errors import LoraFileError, ResourceError
from trainer.events import LoraExported, Warned
from trainer.files import file_sha256, require_free, safe_name, unused_path, write_atomically
from trainer.library import has_preview
from trainer.lora_files.embeddings import write_embedding
from trainer.lora_files.file import write_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.metadata import TrainingFacts, build_metadata, embedding_metadata
from trainer.lora_files.writing import DTYPES
from trainer.training.checkpoint import MARGIN_BYTES
from trainer.training.data_record import dataset_hashes
from trainer.training.export_word import embedding_files, embedding_path, learned_embedding
from trainer.training.preview import preview_path
from trainer.training.state import TrainParts, TrainState
from trainer.training.underneath import on_top_metadata, sum_metadata, summed

TRAINED_WITH_KEY = "inkwash.trained_with"
"""The name of the other of two adapters that were trained jointly."""


def export_name(parts: TrainParts, step: int, *, is_final: bool) -> str:
    """The file's name without its suffix: with the step in it where it is made along the way."""
    # An embedding's name is the word in every program.
    stem = safe_name(parts.name if parts.config.adapter.has_lora else parts.config.data.trigger_word, "lora")
    return stem if is_final else f"{stem}-step{step:06d}"


def export_path(parts: TrainParts, step: int, *, is_final: bool) -> Path:
    """Where the file lies in the run. The file of a run that was finished before, and went on, has its steps in its name."""
    folder = parts.context.run.lora
    path = folder / f"{export_name(parts, step, is_final=is_final)}.safetensors"
    if is_final and path.exists() and _steps_of(path) != str(step):
        return folder / f"{export_name(parts, step, is_final=False)}.safetensors"
    return path


def is_exported(parts: TrainParts, step: int) -> bool:
    """Whether the run has a file of this step: one made along the way, or that of a run that ended there and went on."""
    ended_here = _steps_of(export_path(parts, step, is_final=True)) == str(step)
    return ended_here or export_path(parts, step, is_final=False).exists()


def _steps_of(path: Path) -> str:
    """How many steps a file was trained for, as it says itself; empty where there is none."""
    return read_header(path)[0].get("ss_steps", "") if path.exists() else ""


def export_along_the_way(parts: TrainParts, state: TrainState) -> None:
    """Write the file of a step before the last. Without it the run is as good: what goes wrong is a warning."""
    try:
        export_lora(parts, state, is_final=False)
    except (ResourceError, LoraFileError) as error:
        parts.context.emit(
            Warned(message=f"The LoRA of step {state.step} could not be saved, and the run goes on: {error}")
        )


def export_lora(parts: TrainParts, state: TrainState, *, is_final: bool) -> tuple[Path, Path]:
    """Write the LoRA file, checked by reading it back, and copy it to the library. Returns both paths.

    Raises: LoraFileError: a weight is NaN or too large for the format. ResourceError: the disk is full.
    """
    parts.context.stage("Saving the LoRA")
    path = export_path(parts, state.step, is_final=is_final)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (is_final and path.exists()):
        # A finished run that is resumed has its file already; writing it again would only change its times.
        # Twice: in the run and in the library; of two adapters each and the sum.
        numbers = num_kept(parts.adapter) * len(parts.config.adapter.alone)
        require_free(
            path.parent, 2 * DTYPES[parts.config.save.precision].itemsize * numbers + MARGIN_BYTES, "the LoRA file"
        )
        _write(parts, state, path)
    if is_final and parts.config.save.export_sum:
        _export_sum(parts, state, path)
    for alone in part_paths(parts, path).values():
        _announce(parts, state, alone, f"It is trained together with another, and {path.stem} has both.")
    return path, _announce(parts, state, path, parts.adapter.outcome())


def part_paths(parts: TrainParts, path: Path) -> dict[str, Path]:
    """Where each of two adapters lies that were trained jointly, beside their sum at `path`; empty for one."""
    return {label: path.with_name(f"{path.stem}-{label}{path.suffix}") for label in parts.adapter.export_parts()}


def _announce(parts: TrainParts, state: TrainState, path: Path, note: str) -> Path:
    """Copy a file to the library with its picture, and say so. Returns where it lies there."""
    library_path = _add_to_library(path, parts.data.loras)
    alone = embedding_path(parts, path)
    if alone is not None and alone != path and not parts.config.adapter.embedding.bundle:
        _add_to_library(alone, parts.data.loras)
    _add_preview(library_path, preview_path(parts, state.step, 0))
    event = LoraExported(
        step=state.step,
        path=parts.relative(path),
        library_path=str(library_path),
        size_bytes=path.stat().st_size,
        note=note,
    )
    parts.context.emit(event)
    return library_path


def _export_sum(parts: TrainParts, state: TrainState, path: Path) -> None:
    """Write the LoRA that does what the frozen ones and the new one do together, beside it and in the library."""
    target = path.with_name(f"{path.stem}-sum{path.suffix}")
    if not target.exists():
        facts = replace(_facts(parts, state), name=target.stem)
        names = [alone.stem for alone in part_paths(parts, path).values()] or [path.stem]
        metadata = _sum_entries(parts.config, facts) | sum_metadata(parts.frozen, names)
        write_lora(target, summed(parts.frozen, parts.adapter.export_modules()), metadata, parts.config.save.precision)
    below = ", ".join(lora.name for lora in parts.frozen)
    _announce(parts, state, target, f"It does what {below} and {path.stem} do together.")


def _write(parts: TrainParts, state: TrainState, path: Path) -> None:
    """The files of a step; the LoRA, which says that all are there, last."""
    facts, adapter = _facts(parts, state), parts.config.adapter
    embedding = learned_embedding(parts)
    if embedding is not None:
        own = embedding_metadata(parts.config, facts)
        for file, form in embedding_files(parts, path).items():
            write_embedding(file, embedding if form == "trained" else embedding.mean(), own)
    if adapter.has_lora:
        bundled = [embedding] if embedding is not None and adapter.embedding.bundle else []
        together = part_paths(parts, path)
        if together:
            _write_parts(parts, facts, together)
            names = [alone.stem for alone in together.values()]
            metadata = _sum_entries(parts.config, facts) | sum_metadata((), names)
        else:
            metadata = build_metadata(parts.config, facts)
        metadata |= on_top_metadata(parts.frozen)
        write_lora(path, parts.adapter.export_modules(), metadata, parts.config.save.precision, embeddings=bundled)


def _write_parts(parts: TrainParts, facts: TrainingFacts, paths: Mapping[str, Path]) -> None:
    """The files of two adapters that were trained jointly, each as if it had been trained alone."""
    for number, (label, modules) in enumerate(parts.adapter.export_parts().items()):
        metadata = build_metadata(
            config_alone(parts.config, number), replace(facts, name=paths[label].stem), parts.config
        )
        metadata[TRAINED_WITH_KEY] = ", ".join(path.stem for other, path in paths.items() if other != label)
        write_lora(paths[label], modules, metadata | on_top_metadata(parts.frozen), parts.config.save.precision)


def config_alone(config: RunConfig, number: int) -> RunConfig:
    """The settings with which an adapter of two would be trained alone."""
    rates = config.optimizer
    factor = config.adapter.joint.rate if number else 1.0
    scaled = {name: getattr(rates, name) * factor for name in ("unet_learning_rate", "text_encoder_learning_rate")}
    if rates.text_encoder_2_learning_rate > 0:
        scaled["text_encoder_2_learning_rate"] = rates.text_encoder_2_learning_rate * factor
    return config.model_copy(
        update={"adapter": config.adapter.alone[number], "optimizer": rates.model_copy(update=scaled)}
    )


def _sum_entries(config: RunConfig, facts: TrainingFacts) -> dict[str, str]:
    """The metadata of a sum: a plain LoRA, whose ranks are those of all together, and differ."""
    plain = {"method": "lora", "blocks": [], "block_rates": ""}
    described = config.model_copy(update={"adapter": config.adapter.alone[0].model_copy(update=plain)})
    return build_metadata(described, facts, config) | {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}


def _facts(parts: TrainParts, state: TrainState) -> TrainingFacts:
    config = parts.config
    examples = parts.split.training
    names = {example.concept: example.concept or parts.dataset_name for example in examples}
    of_concept = {label: [example for example in examples if example.concept == label] for label in names}
    triggers = (concept.trigger_word for concept in config.data.all_concepts)
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
        trigger_word=", ".join(dict.fromkeys(filter(None, triggers))),
        base_sha256=file_sha256(weights) if weights else "",
        family=parts.components.family.name,
        prediction_type=parts.components.prediction_type,
        zero_terminal_snr=parts.components.zero_terminal_snr,
        tag_frequency={names[label]: _tags(of_concept[label]) for label in names},
        datasets={names[label]: (found[0].repeats, len(found)) for label, found in of_concept.items()},
        dataset_hashes=dataset_hashes(parts.context.run),
    )


def _tags(examples: Sequence[Example]) -> dict[str, int]:
    """How often each comma-separated part stands in the captions."""
    captions = (caption for example in examples for caption in example.all_captions)
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))


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
    """Put the first sample beside the file, as other programs do: `<name>.preview.png`; not where the user has put one."""
    if picture.exists() and not has_preview(library_path):
        target = library_path.with_suffix(".preview.png")
        write_atomically(target, lambda temporary: shutil.copyfile(picture, temporary), "the preview picture")
