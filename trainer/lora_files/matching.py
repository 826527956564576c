"""Which layer of a model each layer of a LoRA file is for, and whether it fits there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from trainer.errors import Finding, LoraFileError
from trainer.lora_files.architecture import TITLES, architecture_of
from trainer.lora_files.file import LoraFile, LoraModule
from trainer.lora_files.formats.kohya import kohya_names

MAX_UNKNOWN_SHARE = 0.25


@dataclass(frozen=True)
class Match:
    """A LoRA on the layers of a model.

    Attributes:
        modules: by module path ("unet.…", "text_encoder.…"); shapes agree with the model.
        unknown: names in the file that the model has no layer for. The caller tells the user.
    """

    modules: dict[str, LoraModule]
    unknown: tuple[str, ...]


def adaptable_shapes(unet: nn.Module, text_encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """The weight's shape of every linear and convolution layer, by module path."""
    return {
        f"{component}.{path}": tuple(module.weight.shape)
        for component, model in (("unet", unet), ("text_encoder", text_encoder))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def match_modules(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], model_title: str) -> Match:
    """Find the layers of the model for a file's layers.

    Args:
        lora: the file.
        shapes: the weight's shape of each layer of the model, by module path.
        model_title: what to call the model in messages.

    Raises: LoraFileError: a layer has the wrong shape, or many names are unknown: the LoRA is for another model.
    """
    # A model whose text encoder still has the level `text_model` gives the same names as one without.
    table = kohya_names(shapes)
    modules: dict[str, LoraModule] = {}
    unknown: list[str] = []
    misfits: list[Finding] = []
    for name, module in lora.modules.items():
        path = table.get(name)
        if path is None:
            unknown.append(name)
        elif not module.fits(shapes[path]):
            layer = f"{tuple(module.up.shape)} × {tuple(module.down.shape)}"
            misfits.append(Finding(name, f"{layer} does not fit the model's layer {shapes[path]}"))
        else:
            modules[path] = module
    if misfits or len(unknown) > MAX_UNKNOWN_SHARE * len(lora.modules):
        made_for = architecture_of(
            {name: tuple(module.down.shape) for name, module in lora.modules.items()}, lora.metadata
        )
        findings = misfits or [Finding(name, f"'{model_title}' has no such layer") for name in unknown]
        raise LoraFileError(
            f"The LoRA '{lora.path.stem}' was made for {TITLES[made_for]}{_base_name(lora)} and does not fit the base model "
            f"'{model_title}': {len(findings)} of its {len(lora.modules)} layers differ.",
            where=str(lora.path),
            fix="Choose the base model that it was made for, or another LoRA.",
            findings=findings,
        )
    return Match(modules, tuple(unknown))


def _base_name(lora: LoraFile) -> str:
    name = lora.metadata.get("ss_sd_model_name", "")
    return f" (base model '{name}')" if name else ""
