"""A stack of LoRAs merged into a base model's files for good: a checkpoint that needs no LoRA."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from trainer.errors import ConfigError, Finding, LoraFileError
from trainer.files import TEMPORARY_PREFIX, disk_errors, replace, require_free
from trainer.lora_tools.checkpoints import Checkpoint, Slot, part_of
from trainer.lora_tools.inputs import Lora, open_lora
from trainer.lora_tools.lowrank import squares
from trainer.lora_tools.merge import MergeInput
from trainer.lora_tools.names import block_of, in_model_order
from trainer.lora_tools.outputs import TOOL_KEY, refuse_existing
from trainer.lora_tools.rewrite import rewrite_tensors
from trainer.progress import Progress, no_progress

MAX_UNKNOWN_SHARE = 0.25
BakePrecision = Literal["keep", "fp16", "bf16", "fp32"]
_FORMATS = {"keep": None, "fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".pb")
# Hashes of the file that it was made from.
_STALE = ("sshs_", "modelspec.hash_sha256")


@dataclass(frozen=True)
class BlockChange:
    """How far a block's weights were moved: the norm of the change divided by that of the weights."""

    block: str
    layers: int
    relative_change: float


@dataclass(frozen=True)
class BakeReport:
    """What was merged into what.

    Attributes:
        layers: how many weights changed.
        unknown: for each file, the layers that the model does not have.
        relative_change: of all changed weights together.
        words: that the files have vectors for; a checkpoint has no place for them.
    """

    output: str
    base: str
    inputs: tuple[tuple[str, float, float], ...]
    layers: int
    unknown: dict[str, tuple[str, ...]]
    relative_change: float
    size_bytes: int
    seconds: float
    blocks: tuple[BlockChange, ...]
    words: tuple[str, ...] = ()


class _Merger:
    """Makes the changed tensors of a checkpoint, and notes how far they moved."""

    def __init__(
        self, checkpoint: Checkpoint, loras: Sequence[Lora], inputs: Sequence[MergeInput], progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._parts: dict[str, list[tuple[Lora, float]]] = {}
        for lora, item in zip(loras, inputs, strict=True):
            for name in lora.modules:
                weight = item.weight_for(name)
                if name in checkpoint.slots and weight:
                    self._parts.setdefault(name, []).append((lora, weight))
        self._progress = progress
        self._done = 0
        self.moved: dict[str, tuple[float, float]] = {}

    @property
    def names(self) -> set[str]:
        """The layers that change."""
        return set(self._parts)

    def changes(self, file: Path) -> dict[str, Callable[[], Tensor]]:
        """For `rewrite_tensors`: the tensors of a file of the checkpoint that change."""
        by_key: dict[str, dict[str, Slot]] = {}
        for name, slot in self._checkpoint.file_slots[file].items():
            if name in self._parts:
                by_key.setdefault(slot.key, {})[name] = slot
        return {
            key: lambda file=file, key=key, slots=slots: self._merged(file, key, slots) for key, slots in by_key.items()
        }

    def _merged(self, file: Path, key: str, slots: Mapping[str, Slot]) -> Tensor:
        tensor = self._checkpoint.tensor(file, key).float().clone()
        for name, slot in slots.items():
            view = part_of(tensor, slot)
            original = view.clone()
            for lora, weight in self._parts[name]:
                # Each from the untouched weight: what depends on it must not see the others.
                view.add_(lora.modules[name].delta_weight(original).reshape(view.shape), alpha=weight)
            self.moved[name] = (squares(view - original), squares(original))
            self._done += 1
            self._progress("Merging into the weights", self._done, len(self._parts))
        return tensor


def bake_loras(
    inputs: Sequence[MergeInput],
    base: Path,
    output: Path,
    *,
    precision: BakePrecision = "keep",
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> BakeReport:
    """Write a copy of a base model with LoRAs merged into its weights.

    Every weight becomes `W + sum of weight * ΔW(W)`, computed in float32 and rounded once. Tensors that no LoRA changes
    stay as they are, byte for byte; names, order, metadata and, for a folder, all other files too. Reads and writes one
    tensor at a time.

    Args:
        inputs: files with their weights.
        base: a single `.safetensors` file or a diffusers folder.
        output: a `.safetensors` file, or a folder that is not there yet; the same kind as `base`.
        precision: number format of the weights; "keep" leaves each as it is.
        overwrite: whether an `output` file may be there already; folders are never replaced.
        progress: called for every layer; what it raises ends the work, with nothing written.

    Raises: LoraFileError: a file cannot be used or is for another model, or `output` is taken. ModelFileError: the base
        cannot be read, or a weight would leave its number format. ResourceError: the disk is full.
    """
    if not inputs:
        raise ConfigError("There is nothing to merge.", fix="Give at least one LoRA file.")
    paths = [item.path for item in inputs]
    refuse_existing(output, [*paths, base], overwrite=overwrite)
    started = time.monotonic()
    with Checkpoint(base) as checkpoint:
        if not checkpoint.is_folder and output.suffix != ".safetensors":
            raise LoraFileError("The result is a .safetensors file.", where=str(output), fix="Give it that ending.")
        loras: list[Lora] = []
        for index, path in enumerate(paths):
            progress("Reading the files", index, len(paths))
            loras.append(open_lora(path))
        unknown = {lora.file.path.stem: _unknown(lora, checkpoint) for lora in loras}
        merger = _Merger(checkpoint, loras, inputs, progress)
        note = json.dumps(
            {
                "tool": "bake",
                "base": base.stem,
                "from": [
                    {
                        "name": item.path.stem,
                        "weight": item.weight_for("lora_unet"),
                        "text_encoder_weight": item.weight_for("lora_te"),
                    }
                    for item in inputs
                ],
            },
            ensure_ascii=False,
        )
        if checkpoint.is_folder:
            _bake_folder(checkpoint, output, merger, note, _FORMATS[precision])
        else:
            rewrite_tensors(base, output, merger.changes(base), _metadata(checkpoint, base, note), _FORMATS[precision])
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) if output.is_dir() else 0
    return BakeReport(
        output=str(output),
        base=str(base),
        inputs=tuple((str(i.path), i.weight_for("lora_unet"), i.weight_for("lora_te")) for i in inputs),
        layers=len(merger.moved),
        unknown={name: names for name, names in unknown.items() if names},
        words=tuple(dict.fromkeys(name for lora in loras for name in lora.file.embeddings)),
        relative_change=_relative(list(merger.moved.values())),
        size_bytes=size or output.stat().st_size,
        seconds=time.monotonic() - started,
        blocks=_blocks(merger.moved),
    )


def _unknown(lora: Lora, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The layers that the model lacks. Raises LoraFileError where they are many, or a layer does not fit."""
    unknown = tuple(name for name in lora.modules if name not in checkpoint.slots)
    misfits = [
        Finding(name, f"does not fit the model's weight {checkpoint.slots[name].shape}")
        for name, module in lora.modules.items()
        if name in checkpoint.slots and not module.fits(checkpoint.slots[name].shape)
    ]
    if misfits or len(unknown) > MAX_UNKNOWN_SHARE * len(lora.modules):
        findings = misfits or [Finding(name, "the model has no such layer") for name in unknown]
        raise LoraFileError(
            f"The LoRA '{lora.file.path.stem}' does not fit this base model: {len(findings)} of its {len(lora.modules)} layers differ.",
            where=str(lora.file.path),
            fix="Choose the base model that it was made for, or another LoRA.",
            findings=findings,
        )
    return unknown


def _metadata(checkpoint: Checkpoint, file: Path, note: str) -> dict[str, str]:
    found = checkpoint.file_metadata[file]
    return {**{key: value for key, value in found.items() if not key.startswith(_STALE)}, TOOL_KEY: note}


def _bake_folder(checkpoint: Checkpoint, output: Path, merger: _Merger, note: str, dtype: str | None) -> None:
    """Write the whole folder under another name, then rename it."""
    base = checkpoint.path
    files = [file for file in sorted(base.rglob("*")) if file.is_file()]
    # A pickle beside the safetensors would hold the old weights.
    stale = {
        file for file in files if file.suffix in _PICKLES and any(file.parent == w.parent for w in checkpoint.entries)
    }
    require_free(output.parent, sum(file.stat().st_size for file in files if file not in stale), "the model folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{output.name}"
    try:
        for file in files:
            target = partial / file.relative_to(base)
            changes = merger.changes(file) if file in checkpoint.entries else {}
            if file in checkpoint.entries and (changes or dtype):
                rewrite_tensors(file, target, changes, _metadata(checkpoint, file, note), dtype)
            elif file not in stale:
                target.parent.mkdir(parents=True, exist_ok=True)
                with disk_errors(target, "the model folder"):
                    shutil.copyfile(file, target)
        replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _blocks(moved: Mapping[str, tuple[float, float]]) -> tuple[BlockChange, ...]:
    groups: dict[str, list[tuple[float, float]]] = {}
    for name in in_model_order(moved):
        groups.setdefault(block_of(name), []).append(moved[name])
    return tuple(BlockChange(block, len(group), _relative(group)) for block, group in groups.items())


def _relative(moved: Sequence[tuple[float, float]]) -> float:
    weights = sum(weight for _, weight in moved)
    return math.sqrt(sum(change for change, _ in moved) / weights) if weights else 0.0
