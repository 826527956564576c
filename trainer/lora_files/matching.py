"""Which layer of a model each layer of a LoRA file is for, and whether it fits there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from trainer.base_models.detection import INPAINTING_CHANNELS
from trainer.errors import Finding, LoraFileError
from trainer.lora_files.architecture import TITLES
from trainer.lora_files.modules import AdapterModule
from trainer.lora_files.names import BIAS_SUFFIX, FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX, kohya_names
from trainer.lora_files.reading import LoraFile

MAX_UNKNOWN_SHARE = 0.25
_FIRST_LAYER = "unet.conv_in"
_CHANGEABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Match:
    """A LoRA on the layers of a model.

    Attributes:
        modules: by module path ("unet.…", "text_encoder.…"), "….bias" for a bias; shapes agree with the model.
        unknown: names in the file that the model has no layer for, the first layer of an inpainting model, and tensors
            that are nothing known. The caller tells the user.
    """

    modules: dict[str, AdapterModule]
    unknown: tuple[str, ...]


def adaptable_shapes(models: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """The weight's shape of every linear and convolution layer, by module path; `models` as in `changeable_weights`."""
    return {
        f"{component}.{path}": tuple(module.weight.shape)
        for component, model in models.items()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def changeable_weights(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Every weight and bias of linear, convolution and norm layers, by path.

    Args:
        models: by their name in module paths ("unet", "text_encoder", "text_encoder_2").

    Returns: a layer's weight by the layer's path ("unet.conv_in"), its bias with `.bias` behind ("unet.conv_in.bias").
    """
    found: dict[str, Tensor] = {}
    for component, model in models.items():
        for path, module in model.named_modules():
            if isinstance(module, _CHANGEABLE):
                if module.weight is not None:
                    found[f"{component}.{path}"] = module.weight
                if module.bias is not None:
                    found[f"{component}.{path}{BIAS_SUFFIX}"] = module.bias
    return found


def match_modules(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], model_title: str) -> Match:
    """Find the layers of the model for a file's layers.

    Args:
        lora: the file.
        shapes: the shape of each weight of the model, by module path, and of each bias, by that with `.bias` behind.
        model_title: what to call the model in messages.

    Raises: LoraFileError: a layer has the wrong shape, or many names are unknown: the LoRA is for another model.
    """
    # A model whose text encoder still has the level `text_model` gives the same names as one without.
    table = kohya_names(shapes)
    modules: dict[str, AdapterModule] = {}
    unknown: list[str] = []
    misfits: list[Finding] = []
    for name, module in lora.modules.items():
        # SDXL's name of the first text encoder, or the other models': the same layers.
        path = table.get(name) or table.get(name.replace(FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX, 1))
        if path is None or (not module.fits(shapes[path]) and _is_of_inpainting(path, shapes[path])):
            unknown.append(name)
        elif not module.fits(shapes[path]):
            layer = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in module.tensors().items())
            misfits.append(Finding(name, f"{layer} does not fit the model's layer {shapes[path]}"))
        else:
            modules[path] = module
    if misfits or len(unknown) > MAX_UNKNOWN_SHARE * len(lora.modules):
        findings = misfits or [Finding(name, f"'{model_title}' has no such layer") for name in unknown]
        raise LoraFileError(
            f"The LoRA '{lora.path.stem}' was made for {TITLES[lora.architecture]}{_base_name(lora)} and does not fit the base model "
            f"'{model_title}': {len(findings)} of its {len(lora.modules)} layers differ.",
            where=str(lora.path),
            fix="Choose the base model that it was made for, or another LoRA.",
            findings=findings,
        )
    return Match(modules, (*unknown, *lora.unread))


def _is_of_inpainting(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a layer is the first of an inpainting model, which sees more than that of the model it was made from."""
    return path == _FIRST_LAYER and len(shape) == 4 and shape[1] == INPAINTING_CHANNELS


def _base_name(lora: LoraFile) -> str:
    name = lora.metadata.get("ss_sd_model_name", "")
    return f" (base model '{name}')" if name else ""
