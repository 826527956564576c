"""Upscaling models (ESRGAN, Real-ESRGAN, SwinIR, DAT, HAT, …), read by the library spandrel, which knows their architectures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from trainer.errors import ModelFileError, ResourceError
from trainer.models.stored import load_pickle, open_tensors
from trainer.upscalers import EXTRA

_MAX_NESTING = 3


class UpscalerModel:
    """A model that makes pictures `scale` times larger, in float32.

    Attributes:
        scale: 2 or more.
        architecture: what spandrel calls it.
        is_tileable: whether a picture can be enlarged in tiles. Some models tile by themselves.
    """

    def __init__(self, descriptor: Any) -> None:
        self._descriptor = descriptor
        self.scale = int(descriptor.scale)
        self.architecture = str(descriptor.architecture.name)
        self.is_tileable = descriptor.tiling.name != "INTERNAL"

    def to(self, device: torch.device) -> UpscalerModel:
        """Move it."""
        self._descriptor.to(device)
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        """`(1, 3, height, width)` float32 in [0, 1], `scale` times larger on the model's device."""
        return self._descriptor(pixels)


def load_upscaler(path: Path) -> UpscalerModel:
    """Read a model from a `.safetensors` file, or a `.pth` that holds nothing but tensors and plain values.

    Raises: ModelFileError: it cannot be read, is no upscaler of a known architecture, or not for colour pictures.
        ResourceError: spandrel is not installed.
    """
    spandrel: Any = require_spandrel()
    weights = _weights(path)
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
    except Exception as error:  # each architecture has its own way of failing on files that are not quite its own
        raise _no_upscaler(path, "it is of no architecture that is known") from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise _no_upscaler(path, f"{descriptor.architecture.name} fills in what is masked")
    if descriptor.scale < 2:
        raise _no_upscaler(path, f"{descriptor.architecture.name} leaves a picture's size as it is")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        channels = f"{descriptor.input_channels} to {descriptor.output_channels} channels"
        raise _no_upscaler(path, f"it makes {channels} of a picture instead of 3 to 3")
    descriptor.model.requires_grad_(False)
    return UpscalerModel(descriptor.eval().float())


def _no_upscaler(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"The file '{path.name}' cannot enlarge pictures: {reason}.",
        where=str(path),
        fix="Choose an upscaling model for colour pictures, such as one of ESRGAN, Real-ESRGAN, SwinIR, DAT or HAT.",
    )


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        return {name: tensor.load(torch.float32) for name, tensor in open_tensors(path).items()}
    return _tensors(load_pickle(path, mmap=False, broken="Download it again."))


def _tensors(content: Any) -> dict[str, Tensor]:
    """The weights, which many files have one level down, some beside an average of them."""
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in content.values()):
            break
        levels = {str(name): value for name, value in content.items() if isinstance(value, dict)}
        usual = (name for name in ("params_ema", "params", "state_dict", "model_state_dict") if name in levels)
        content = levels.get(next(usual, next(iter(levels), "")), {})
    found = content.items() if isinstance(content, dict) else ()
    return {str(name): tensor for name, tensor in found if isinstance(tensor, Tensor)}


@cache
def require_spandrel() -> ModuleType:
    """The library. Raises ResourceError: it is not installed, or does not work."""
    try:
        with _without_torchvision():
            import spandrel
    except ImportError as error:
        raise ResourceError(
            f"Upscaling models need the library spandrel, which cannot be loaded: {error}.",
            where="hires_upscaler",
            fix=f"Install it with `{EXTRA}`.",
        ) from error
    return spandrel


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let spandrel import torchvision where it is not.

    Two of its forty architectures take a function from there. torchvision has to be of the very build that torch is of, and where it is
    not, everything that looks for it fails, transformers too; so it is not asked for.
    """
    parts = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    if parts[0] in sys.modules:
        yield
        return
    modules = {name: ModuleType(name) for name in parts}
    functional: Any = modules[parts[-1]]
    functional.normalize, functional.rotate, functional.InterpolationMode = _normalized, None, None
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in parts:
            del sys.modules[name]


def _normalized(pixels: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """What torchvision calls `normalize`: `(…, channels, height, width)` less the mean, by the spread, of each channel.

    `rotate`, the other one, is used by a model that fills in masks; those are refused.
    """
    as_channels = (
        torch.tensor(values, device=pixels.device, dtype=pixels.dtype)[:, None, None] for values in (mean, std)
    )
    middle, spread = as_channels
    return (pixels - middle) / spread
