"""How modules are laid out in a file: the kohya layout, diffusers', peft's. A writer is an entry in LAYOUTS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from trainer.errors import Finding, LoraFileError
from trainer.lora_files.architecture import architecture_of
from trainer.lora_files.formats.diffusers import PEFT_PREFIX
from trainer.lora_files.kinds import ModuleFacts, module_facts
from trainer.lora_files.modules import AdapterModule, LoraModule
from trainer.lora_files.names import (
    BIAS_SUFFIX,
    FIRST_TEXT_ENCODER_PREFIX,
    TEXT_ENCODER_PREFIX,
    UNET_PREFIX,
    canonical_name,
    kohya_name,
    module_path,
    to_sgm,
)
from trainer.lora_files.relative import DoraModule

Modules = Mapping[str, AdapterModule]


@dataclass(frozen=True)
class Layout:
    """A way to write modules.

    Attributes:
        title: what it is called in messages.
        prepare: the same changes of weights in the form that the layout holds; raises LoraFileError where it cannot.
        keys: the key of a part, from the module's canonical name, the part, and whether the LoRA is for SDXL.
    """

    title: str
    prepare: Callable[[Modules, str], Modules]
    tensors: Callable[[str, AdapterModule, bool], dict[str, Tensor]]


def canonical_modules(modules: Modules) -> dict[str, AdapterModule]:
    """The modules by canonical kohya names, whatever names they came with."""
    return {canonical_name(kohya_name(path)): module for path, module in modules.items()}


def facts_of(module: AdapterModule) -> ModuleFacts | None:
    """A module's kind and sizes; None for a bias."""
    if module.kind == "bias":
        return None
    return module_facts({part: tuple(tensor.shape) for part, tensor in module.tensors().items()})


def is_xl(modules: Modules, metadata: Mapping[str, str]) -> bool:
    """Whether modules (by canonical names) are for SDXL."""
    facts = {name: facts_of(module) for name, module in modules.items()}
    return architecture_of({name: f.in_features if f else 0 for name, f in facts.items()}, metadata) == "sdxl"


def written_name(name: str, for_xl: bool) -> str:
    """The name of a canonical name in a kohya file: SDXL's have the original code's block names and `lora_te1_`."""
    if name.startswith(UNET_PREFIX):
        rest = name.removeprefix(UNET_PREFIX)
        return UNET_PREFIX + (to_sgm(rest) if for_xl else rest)
    wrong, right = (TEXT_ENCODER_PREFIX, FIRST_TEXT_ENCODER_PREFIX) if for_xl else (FIRST_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX)  # fmt: skip
    return name.replace(wrong, right, 1) if name.startswith(wrong) else name


def kohya_tensors(name: str, module: AdapterModule, for_xl: bool) -> dict[str, Tensor]:
    """A module's tensors by kohya keys."""
    written = written_name(name.removesuffix(BIAS_SUFFIX), for_xl)
    return {f"{written}.{part}": tensor for part, tensor in module.tensors().items()}


def with_uniform_alpha(modules: Modules, _where: str) -> dict[str, AdapterModule]:
    """The same changes of weights with one alpha for the UNet and one for the text encoders: the commonest.

    diffusers ignores an attention layer's alpha that differs from the others.
    """
    common: dict[bool, float] = {}
    for is_unet in (True, False):
        alphas = Counter(
            module.alpha
            for name, module in modules.items()
            if isinstance(module, LoraModule) and name.startswith(UNET_PREFIX) == is_unet
        )
        if alphas:
            common[is_unet] = alphas.most_common(1)[0][0]
    result: dict[str, AdapterModule] = dict(modules)
    for name, module in modules.items():
        if isinstance(module, LoraModule):
            alpha = common[name.startswith(UNET_PREFIX)]
            if module.alpha != alpha:
                result[name] = LoraModule(module.down, module.up * (module.alpha / alpha), alpha, module.mid)
    return result


def without_tucker(module: LoraModule) -> LoraModule:
    """The same change as plain matrices: the Tucker core goes into `down`. Plain modules are returned as they are."""
    if module.mid is None:
        return module
    _, down = module.factors()
    down = down.reshape(module.rank, module.down.shape[1], *module.mid.shape[2:]).to(module.down.dtype)
    return LoraModule(down, module.up, module.alpha)


def with_folded_alpha(modules: Modules, where: str) -> dict[str, AdapterModule]:
    """Plain LoRA, and DoRA by output channels around it, with the scale 1: these layouts have no alpha in the file.

    Raises: LoraFileError: a module is of another kind, or its name does not say its path.
    """
    result: dict[str, AdapterModule] = {}
    foreign: list[Finding] = []
    for name, module in modules.items():
        inner = module.inner if isinstance(module, DoraModule) and module.axis == 0 else module
        if not isinstance(inner, LoraModule):
            kind = "DoRA by input channels" if isinstance(module, DoraModule) else module.kind
            foreign.append(Finding(name, f"is a {kind}" if kind != "bias" else "changes a bias"))
            continue
        if module_path(name) is None:
            foreign.append(Finding(name, "is no layer of these models, so that its path is not known"))
            continue
        plain = without_tucker(inner)
        up = plain.up if plain.scale == 1 else plain.up.float() * plain.scale
        folded = LoraModule(plain.down, up, float(plain.rank))
        result[name] = DoraModule(folded, module.magnitude, 0) if isinstance(module, DoraModule) else folded
    if foreign:
        raise LoraFileError(
            f"{len(foreign)} of {len(modules)} layers cannot be written in this layout, which holds plain LoRA and DoRA by "
            "output channels only.",
            where=where,
            fix="Use the kohya layout, or turn the file into a plain LoRA first.",
            findings=foreign,
        )
    return result


def _dotted_tensors(path: str, module: AdapterModule) -> dict[str, Tensor]:
    inner = module.inner if isinstance(module, DoraModule) else module
    assert isinstance(inner, LoraModule)  # noqa: S101 - `with_folded_alpha` lets nothing else through
    tensors = {f"{path}.lora_A.weight": inner.down, f"{path}.lora_B.weight": inner.up}
    if isinstance(module, DoraModule):
        # peft's shapes: (out,) for linear layers, (1, out, 1, 1) for convolutions.
        flat = module.magnitude.flatten()
        tensors[f"{path}.lora_magnitude_vector"] = flat.view(1, -1, 1, 1) if inner.down.ndim == 4 else flat
    return tensors


def diffusers_tensors(name: str, module: AdapterModule, _for_xl: bool) -> dict[str, Tensor]:
    """A module's tensors by diffusers' keys ("unet.….lora_A.weight")."""
    return _dotted_tensors(str(module_path(name)), module)


def peft_tensors(name: str, module: AdapterModule, _for_xl: bool) -> dict[str, Tensor]:
    """A module's tensors by the peft library's keys ("base_model.model.….lora_A.weight")."""
    return _dotted_tensors(PEFT_PREFIX + str(module_path(name)).partition(".")[2], module)


def _one_component(modules: Modules, where: str) -> dict[str, AdapterModule]:
    folded = with_folded_alpha(modules, where)
    components = {str(module_path(name)).partition(".")[0] for name in folded}
    if len(components) > 1:
        raise LoraFileError(
            f"The peft library has one file for each of {', '.join(sorted(components))}.",
            where=where,
            fix="Write them one by one, or use the diffusers layout.",
        )
    return folded


LAYOUTS: dict[str, Layout] = {
    "kohya": Layout("the kohya layout", with_uniform_alpha, kohya_tensors),
    "diffusers": Layout("diffusers' layout", with_folded_alpha, diffusers_tensors),
    "peft": Layout("the peft library's layout", _one_component, peft_tensors),
}
