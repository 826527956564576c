"""A LoRA from two checkpoints: what a fine-tuned model changed of its base, layer by layer, at a low rank."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import ConfigError, Finding, ModelFileError
from trainer.lora_files.architecture import Architecture
from trainer.lora_files.file import DTYPES
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.compress import compress
from trainer.lora_tools.figures import WrittenLora, written_figures
from trainer.lora_tools.names import in_model_order
from trainer.lora_tools.outputs import finished_metadata, header_bytes, require_writable, write_result
from trainer.lora_tools.truncation import Truncation
from trainer.progress import Progress, no_progress

# Layers that the loaders of other tools skip without a word.
_NOT_READ = re.compile(r"lora_unet_(conv_in|conv_out|time_embedding|add_embedding)|.*text_projection$")
_WIDTHS: dict[int, Architecture] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract.

    Attributes:
        truncation: the rank of each layer; not "exact".
        conv_rank: of 3x3 convolutions; None for the same rule, 0 to leave them out.
        text_encoder: whether the text encoders' changes are taken, too.
        precision: "fp16", "bf16" or "fp32".

    Raises: ConfigError: "exact", or a rank below 0.
    """

    truncation: Truncation
    conv_rank: int | None = None
    text_encoder: bool = True
    precision: str = "fp16"

    def __post_init__(self) -> None:
        if self.truncation.rule == "exact":
            raise ConfigError("A difference of two models is not of low rank.", fix="Give a rank or an energy share.")
        if self.conv_rank is not None and self.conv_rank < 0:
            raise ConfigError("The rank of convolutions is 0 or more.")


@dataclass(frozen=True)
class ExtractReport(WrittenLora):
    """What an extraction did.

    Attributes:
        unchanged: how many layers are the same in both models.
        left_out: layers that differ, but are not among those that LoRA loaders read, or were not asked for.
        layers, norm, error: of the layers that were taken.
    """

    base: str
    tuned: str
    unchanged: int
    left_out: tuple[str, ...]


def extract_lora(
    base: Path,
    tuned: Path,
    output: Path,
    options: ExtractOptions,
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ExtractReport:
    """Write the difference `tuned - base` as a LoRA.

    Reads one layer of each model at a time. A layer counts as unchanged where both are equal in the coarser of the two
    number formats, so that an fp16 copy of an fp32 model is no difference.

    Args:
        base, tuned: single `.safetensors` files or diffusers folders, in any combination.
        output: where to; a `.safetensors` file.
        options: ranks and layers.
        overwrite: whether `output` may be there already.
        progress: called for every layer; what it raises ends the work, with nothing written.

    Raises: ModelFileError: a model cannot be read, they are of different families, equal, or hold NaN.
        LoraFileError: `output` is taken.
    """
    require_writable(output, [base, tuned], overwrite=overwrite)
    started = time.monotonic()
    with Checkpoint(base) as first, Checkpoint(tuned) as second:
        _require_same_layers(first, second)
        architecture = architecture_of_checkpoint(first)
        shared = in_model_order(first.slots.keys() & second.slots.keys())
        changed: list[str] = []
        for done, name in enumerate(shared, 1):
            if not _are_equal(first, second, name):
                changed.append(name)
            progress("Looking for changed layers", done, len(shared))
        wanted = [name for name in changed if _is_wanted(name, first.slots[name].shape, options)]
        if not wanted:
            raise ModelFileError(
                "The two models do not differ in any layer that was asked for.",
                where=str(tuned),
                fix="Choose the base model and a model that was fine-tuned from it.",
            )
        metadata = finished_metadata(
            {"ss_sd_model_name": base.stem, "modelspec.merged_from": f"{tuned.stem} - {base.stem}"},
            architecture,
            {"tool": "extract", "base": base.stem, "tuned": tuned.stem, "cut": str(options.truncation)},
        )
        makers: dict[str, Callable[[], Change]] = {
            name: lambda name=name: _difference(first, second, name) for name in wanted
        }
        dtype = DTYPES[options.precision]
        compressed = compress(
            makers,
            options.truncation,
            float(options.truncation.cap or 16),
            dtype,
            progress,
            reserved_bytes=header_bytes(wanted, metadata),
            conv_rank=options.conv_rank,
        )
    progress("Writing the file", 0, 0)
    write_result(output, compressed.modules, metadata, architecture, dtype)
    return ExtractReport(
        **written_figures(output, compressed.layers, started),
        base=str(base),
        tuned=str(tuned),
        unchanged=len(shared) - len(changed),
        left_out=tuple(name for name in changed if name not in compressed.modules),
    )


def architecture_of_checkpoint(checkpoint: Checkpoint) -> Architecture:
    """What a checkpoint is, from its parts and the width of its cross-attention."""
    if checkpoint.is_xl:
        return "sdxl"
    widths = {slot.shape[1] for name, slot in checkpoint.slots.items() if name.endswith("attn2_to_k")}
    return _WIDTHS.get(widths.pop(), "unknown") if len(widths) == 1 else "unknown"


def _require_same_layers(first: Checkpoint, second: Checkpoint) -> None:
    wrong = [
        Finding(name, f"{first.slots[name].shape} in the base, {second.slots[name].shape} in the tuned model")
        for name in first.slots.keys() & second.slots.keys()
        if first.slots[name].shape != second.slots[name].shape and not _is_input(name)
    ]
    shared = len(first.slots.keys() & second.slots.keys())
    if wrong or shared < 0.5 * min(len(first.slots), len(second.slots)):
        raise ModelFileError(
            "The two models are not of one family: their layers differ.",
            where=str(second.path),
            fix="Choose the base model that this one was fine-tuned from.",
            findings=wrong,
        )


def _is_input(name: str) -> bool:
    # Inpainting models have more channels there, and are the same otherwise.
    return name == "lora_unet_conv_in"


def _is_wanted(name: str, shape: tuple[int, ...], options: ExtractOptions) -> bool:
    if len(shape) == 1 or _NOT_READ.match(name) or (name.startswith("lora_te") and not options.text_encoder):
        return False
    return not (options.conv_rank == 0 and tuple(shape[2:]) not in ((), (1, 1)))


def _are_equal(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    one, two = first.stored_weight(name), second.stored_weight(name)
    if one.shape != two.shape:
        return False
    narrow = one.dtype if one.element_size() <= two.element_size() else two.dtype
    return torch.equal(one.to(narrow), two.to(narrow))


def _difference(first: Checkpoint, second: Checkpoint, name: str) -> Change:
    difference: Tensor = second.weight(name) - first.weight(name)
    if not torch.isfinite(difference.sum(dtype=torch.float64)):
        bad = second if not torch.isfinite(second.weight(name)).all() else first
        raise ModelFileError(
            f"The layer '{name}' holds NaN or infinite numbers.",
            where=str(bad.path),
            fix="Use another version of this model.",
        )
    return Change(difference.flatten(1), first.slots[name].shape)
