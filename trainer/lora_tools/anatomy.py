"""What is inside a LoRA: norms, spectra, dead, damaged and missing layers, block by block."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.inputs import Lora, open_lora, vector_differences
from trainer.lora_tools.lowrank import effective_rank, squares
from trainer.lora_tools.names import block_of, common_name, in_model_order
from trainer.progress import Progress, no_progress

_SHOWN_VALUES = 64
# A layer that moves its weight this much less than the usual layer of the file does nothing that can be seen.
_DEAD_SHARE = 1e-4
# A layer that this share of the like blocks has is missing in the others.
_USUAL_SHARE = 0.75
_PLACE = re.compile(r"(lora_(?:unet|te2?)_.*?(?:transformer_blocks|layers)_\d+)_(.+)")


@dataclass(frozen=True)
class ModuleAnatomy:
    """A layer's change.

    Attributes:
        kind, rank, alpha: as in the file; None where the kind has none.
        norm: the Frobenius norm of the change.
        effective_rank: how many directions it really uses (Roy and Vetterli 2007).
        spectrum: its largest singular values, descending.
        is_dead: whether it is zero, or next to nothing beside the file's other layers.
    """

    name: str
    kind: str
    rank: int | None
    alpha: float | None
    norm: float
    effective_rank: float
    spectrum: tuple[float, ...]
    is_dead: bool


@dataclass(frozen=True)
class BlockAnatomy:
    """A block's layers together; `spectrum` is the mean of theirs, each divided by its largest value."""

    block: str
    layers: int
    min_rank: int
    max_rank: int
    norm: float
    effective_rank: float
    dead: int
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class AnatomyReport:
    """A file's layers and blocks, in the model's order.

    Attributes:
        vector_differences: how many changes of norms and biases it has; they have no spectrum.
        dead: layers without effect.
        damaged: layers with NaN or infinite numbers.
        not_measured: layers whose change depends on a base model that was not given.
        missing: layers that nearly all like blocks of the file have and one has not.
        lacks_alpha: whether the file does not say its alpha, so that the rank was taken.
    """

    file: str
    modules: tuple[ModuleAnatomy, ...]
    blocks: tuple[BlockAnatomy, ...]
    vector_differences: int
    dead: tuple[str, ...]
    damaged: tuple[str, ...]
    not_measured: tuple[str, ...]
    missing: tuple[str, ...]
    lacks_alpha: bool
    norm: float
    seconds: float


def lora_anatomy(path: Path, *, base: Path | None = None, progress: Progress = no_progress) -> AnatomyReport:
    """Measure every layer of a file, of any kind. A file with damaged layers is measured without them.

    Args:
        path: the file.
        base: the checkpoint for modules that depend on the base model's weights.
        progress: called for every layer; what it raises ends the work.

    Raises: LoraFileError: the file cannot be read.
    """
    started = time.monotonic()
    checkpoint = Checkpoint(base) if base else None
    try:
        progress("Reading the file", 0, 0)
        lora = open_lora(path, checkpoint, refuse_damaged=False)
        differences = vector_differences(lora)
        names = in_model_order(name for name in lora.modules if name not in differences)
        unmet = [name for name in names if lora.modules[name].needs_original() and checkpoint is None]
        modules = _measure(lora, [name for name in names if name not in unmet], progress)
    finally:
        if checkpoint:
            checkpoint.close()
    groups: dict[str, list[ModuleAnatomy]] = {}
    for module in modules:
        groups.setdefault(block_of(module.name), []).append(module)
    damaged = in_model_order(common_name(name) for name in lora.file.damaged)
    return AnatomyReport(
        file=str(path),
        modules=tuple(modules),
        blocks=tuple(_block(block, group) for block, group in groups.items()),
        vector_differences=len(differences),
        dead=tuple(module.name for module in modules if module.is_dead),
        damaged=tuple(damaged),
        not_measured=tuple(unmet),
        missing=missing_layers([*names, *damaged]),
        lacks_alpha=lora.file.lacks_alpha,
        norm=math.sqrt(sum(module.norm**2 for module in modules)),
        seconds=time.monotonic() - started,
    )


def missing_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Layers that most of the like blocks have and some lack: a file that was cut by hand, or a copy that broke off.

    Blocks are alike where they are of one part of the model and of one kind: a file that leaves out a whole kind on purpose lacks nothing.
    """
    blocks: dict[str, set[str]] = {}
    for name in names:
        found = _PLACE.fullmatch(name)
        if found:
            blocks.setdefault(found[1], set()).add(found[2])
    kinds: dict[str, list[str]] = {}
    for block in blocks:
        kinds.setdefault(block.split("_")[1], []).append(block)
    missing: list[str] = []
    for alike in kinds.values():
        counts = Counter(layer for block in alike for layer in blocks[block])
        usual = [layer for layer, count in counts.items() if count >= _USUAL_SHARE * len(alike)]
        missing += [f"{block}_{layer}" for block in alike for layer in usual if layer not in blocks[block]]
    return tuple(in_model_order(missing))


def _measure(lora: Lora, names: Sequence[str], progress: Progress) -> list[ModuleAnatomy]:
    measured: list[tuple[str, float, float, tuple[float, ...]]] = []
    for done, name in enumerate(names, 1):
        values = lora.change(name).singular_values()
        spectrum = tuple(float(value) for value in values[:_SHOWN_VALUES])
        measured.append((name, math.sqrt(squares(values)), effective_rank(values), spectrum))
        progress("Measuring the layers", done, len(names))
    usual = statistics.median([norm for _, norm, _, _ in measured if norm] or [0.0])
    return [
        ModuleAnatomy(
            name=name,
            kind=lora.modules[name].kind,
            rank=lora.modules[name].rank,
            alpha=getattr(lora.modules[name], "alpha", None),
            norm=norm,
            effective_rank=used,
            spectrum=spectrum,
            is_dead=norm <= _DEAD_SHARE * usual,
        )
        for name, norm, used, spectrum in measured
    ]


def _block(block: str, modules: Sequence[ModuleAnatomy]) -> BlockAnatomy:
    ranks = [module.rank or 0 for module in modules]
    alive = [module.spectrum for module in modules if not module.is_dead]
    longest = max((len(spectrum) for spectrum in alive), default=0)
    return BlockAnatomy(
        block=block,
        layers=len(modules),
        min_rank=min(ranks),
        max_rank=max(ranks),
        norm=math.sqrt(sum(module.norm**2 for module in modules)),
        effective_rank=sum(module.effective_rank for module in modules) / len(modules),
        dead=sum(module.is_dead for module in modules),
        spectrum=tuple(
            sum(values[i] / values[0] for values in alive if i < len(values)) / len(alive) for i in range(longest)
        ),
    )
