"""LoRA files as the tools take them in: layers by common name, each as a change of a weight of known shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import Finding, LoraFileError
from trainer.lora_files.architecture import TITLES, Architecture
from trainer.lora_files.file import LoraFile, read_lora
from trainer.lora_files.modules import AdapterModule, DifferenceModule, LohaModule, LokrModule, LoraModule
from trainer.lora_tools.changes import Change
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.names import common_name
from trainer.lora_tools.products import exact_product, flat_module_shape

_CONV3 = re.compile(r"_(conv1|conv2|downsamplers_0_conv|upsamplers_0_conv|conv_in|conv_out)$")
_CONV1 = re.compile(r"_conv_shortcut$")
_CONV1_IN_SD1 = re.compile(r"_proj_(in|out)$")


@dataclass(frozen=True)
class Lora:
    """An opened file.

    Attributes:
        file: as read.
        modules: by common name.
        base: the checkpoint that modules which depend on the original weight are for, if one was given.
    """

    file: LoraFile
    modules: Mapping[str, AdapterModule]
    base: Checkpoint | None = None

    @property
    def architecture(self) -> Architecture:
        """What it was made for."""
        return self.file.architecture

    @property
    def max_rank(self) -> int:
        """The highest rank of its factors."""
        return max((module.rank or 1 for module in self.modules.values()), default=1)

    def change(self, name: str) -> Change:
        """What a layer's weight changes by.

        Raises: LoraFileError: the module needs a base model that was not given, or does not fit it.
        """
        module = self.modules[name]
        shape = self._shape(name, module)
        product = exact_product(module)
        if product is not None:
            return Change(product, shape)
        if not module.needs_original():
            return Change(module.delta_weight(torch.zeros(1).expand(shape)).flatten(1), shape)
        if self.base is None:
            raise needs_base(self, [name])
        return Change(module.delta_weight(self.base.weight(name)).flatten(1), shape)

    def _shape(self, name: str, module: AdapterModule) -> tuple[int, ...]:
        if self.base is not None:
            if name not in self.base.slots:
                raise LoraFileError(
                    f"The base model has no layer '{name}'.",
                    where=str(self.file.path),
                    fix="Give the right base model.",
                )
            shape = self.base.slots[name].shape
        else:
            shape = weight_shape(name, module, self.architecture)
        if not module.fits(shape):
            raise LoraFileError(
                f"The layer '{name}' does not fit a weight of shape {shape}.", where=str(self.file.path)
            )
        return shape


def open_lora(path: Path, base: Checkpoint | None = None, *, refuse_damaged: bool = True) -> Lora:
    """Read a file for a tool; `refuse_damaged` as in `read_lora`.

    Raises: LoraFileError: as `read_lora`; or two of its layers are the same one by two names.
    """
    file = read_lora(path, refuse_damaged=refuse_damaged)
    modules: dict[str, AdapterModule] = {}
    for name, module in file.modules.items():
        if common_name(name) in modules:
            raise LoraFileError(f"The layer '{name}' is in the file twice, by two names.", where=str(path))
        modules[common_name(name)] = module
    return Lora(file, modules, base)


def require_same_architecture(loras: Sequence[Lora]) -> Architecture:
    """The architecture of all files that say it. Raises LoraFileError when they differ."""
    known: set[Architecture] = {lora.architecture for lora in loras}
    known.discard("unknown")
    if len(known) > 1:
        raise LoraFileError(
            "These LoRAs are for different base models and cannot go together.",
            fix="Choose LoRAs of one family.",
            findings=[Finding(str(lora.file.path), TITLES[lora.architecture]) for lora in loras],
        )
    return known.pop() if known else "unknown"


def needs_base(lora: Lora, names: Sequence[str]) -> LoraFileError:
    """The refusal of modules that mean nothing without the weights they are for."""
    return LoraFileError(
        f"{len(names)} layers of this file depend on the base model's weights.",
        where=str(lora.file.path),
        fix="Give the base model's checkpoint with --base.",
        findings=[Finding(name, lora.modules[name].kind) for name in names],
    )


def matrix_names(lora: Lora) -> list[str]:
    """The layers whose change is that of a matrix or kernel, checked to be computable.

    Raises: LoraFileError: some need a base model that was not given.
    """
    differences = vector_differences(lora)
    names = [name for name in lora.modules if name not in differences]
    unmet = [name for name in names if lora.modules[name].needs_original() and lora.base is None]
    if unmet:
        raise needs_base(lora, unmet)
    return names


def vector_differences(lora: Lora) -> dict[str, DifferenceModule]:
    """The changes of norms and biases: plain vectors, which have no rank."""
    return {
        name: module
        for name, module in lora.modules.items()
        if isinstance(module, DifferenceModule) and module.kind in ("norm", "bias")
    }


def weight_shape(name: str, module: AdapterModule, architecture: Architecture) -> tuple[int, ...]:
    """The shape of the weight that a module is for, from its tensors, and where they are flat from its name.

    Raises: LoraFileError: it does not follow.
    """
    if isinstance(module, LoraModule):
        kernel = (module.down if module.mid is None else module.mid).shape[2:]
        return (module.up.shape[0], module.down.shape[1], *kernel)
    if isinstance(module, DifferenceModule):
        return tuple(module.difference.shape)
    if isinstance(module, LohaModule | LokrModule):
        rows, columns = flat_module_shape(module)
        # Tucker's core, or a whole factor of a convolution, is the one tensor that still has the kernel.
        kernels = {tuple(tensor.shape[2:]) for tensor in module.tensors().values() if tensor.ndim == 4} - {(1, 1)}
        if len(kernels) == 1 and columns % math.prod(kernel := kernels.pop()) == 0:
            return (rows, columns // math.prod(kernel), *kernel)
        return _with_kernel(name, rows, columns, architecture)
    raise LoraFileError(
        f"The shape of the layer '{name}' ({module.kind}) does not follow from the file.",
        fix="Give the base model's checkpoint with --base.",
    )


def _with_kernel(name: str, rows: int, columns: int, architecture: Architecture) -> tuple[int, ...]:
    if _CONV3.search(name) and columns % 9 == 0:
        return rows, columns // 9, 3, 3
    if _CONV1.search(name) or (architecture == "sd1" and _CONV1_IN_SD1.search(name)):
        return rows, columns, 1, 1
    return rows, columns
