"""Training on top of LoRAs that stay as they are: they are merged into the frozen weights, and a new adapter learns beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config.run import RunConfig
from trainer.errors import ConfigError, Finding
from trainer.files import file_sha256
from trainer.library import resolve_lora
from trainer.lora_files.file import AdapterModule, read_lora
from trainer.lora_files.matching import changeable_weights, match_modules
from trainer.lora_files.modules import DifferenceModule
from trainer.lora_tools.exact_sum import layer_shape, sum_modules
from trainer.lora_tools.products import exact_product
from trainer.models.components import Components
from trainer.models.frozen import FrozenLayer
from trainer.paths import DataFolder
from trainer.sampling.stack import LayerSum

ON_TOP_KEY = "inkwash.on_top_of"
SUM_KEY = "inkwash.sum_of"


@dataclass(frozen=True)
class FrozenLora:
    """A LoRA under the one that is trained.

    Attributes:
        name, sha256: of the file.
        modules: by module path of this model.
        weights: how strongly it changes the UNet, and the text encoders.
        shapes: of the model's weights that they change.
        unknown: names of layers that the model does not have.
    """

    name: str
    sha256: str
    modules: Mapping[str, AdapterModule]
    shapes: Mapping[str, tuple[int, ...]]
    weights: tuple[float, float]
    unknown: tuple[str, ...] = ()

    def weight(self, path: str) -> float:
        """How strongly it changes a layer."""
        return self.weights[0] if path.startswith("unet.") else self.weights[1]

    @property
    def changes_text(self) -> bool:
        """Whether it changes a text encoder."""
        return any(self.weight(path) for path in self.modules if not path.startswith("unet."))

    def identity(self) -> list[Any]:
        """What the training follows from, JSON-able."""
        return [self.name, self.sha256, *self.weights]


def read_frozen(config: RunConfig, data: DataFolder, components: Components) -> tuple[FrozenLora, ...]:
    """The files of `adapter.on_top_of`, checked against the model; nothing is changed yet.

    Raises: LoraFileError: there is no such file, or it does not fit. ConfigError: their sum with a new one is asked for, and
        one of them is not of low rank.
    """
    if not config.adapter.on_top_of:
        return ()
    shapes = {name: tuple(weight.shape) for name, weight in changeable_weights(components.adaptable).items()}
    found: list[FrozenLora] = []
    for lora in config.adapter.frozen_loras:
        path = resolve_lora(data, lora.file)
        match = match_modules(read_lora(path), shapes, components.name)
        weights = (lora.unet_weight, lora.text_encoder_weight)
        own = {name: shapes[name] for name in match.modules}
        found.append(FrozenLora(path.stem, file_sha256(path), match.modules, own, weights, match.unknown))
    if config.save.export_sum:
        _require_products(found)
    return tuple(found)


def _require_products(loras: Sequence[FrozenLora]) -> None:
    whole = [
        Finding(path, f"{module.kind} in {lora.name}")
        for lora in loras
        for path, module in lora.modules.items()
        if exact_product(module) is None and not _is_vector(module)
    ]
    if whole:
        raise ConfigError(
            f"{len(whole)} layers under the new adapter are not of low rank, so that no plain LoRA is exactly the sum.",
            where="save.export_sum",
            fix="Turn it off, or cut those files to a rank first with `inkwash lora resize`.",
            findings=whole,
        )


def _is_vector(module: AdapterModule) -> bool:
    return isinstance(module, DifferenceModule) and module.difference.ndim == 1


@torch.no_grad()
def merge_frozen(components: Components, loras: Sequence[FrozenLora]) -> None:
    """Add the files' changes to the model's weights, in float32 and rounded once, each as a change of the original weight."""
    weights = changeable_weights(components.adaptable)
    frozen = {
        f"{name}.{path}": module
        for name, model in components.adaptable.items()
        for path, module in model.named_modules()
        if isinstance(module, FrozenLayer)
    }
    parts: dict[str, list[tuple[AdapterModule, float]]] = {}
    for lora in loras:
        for path, module in lora.modules.items():
            if lora.weight(path):
                parts.setdefault(path, []).append((module, lora.weight(path)))
    for path, changes in parts.items():
        weight = weights[path]
        together = LayerSum([module for module, _ in changes], weight.device)
        together.merge(weight, weight.detach().clone(), [strength for _, strength in changes])
        layer = frozen.get(path)
        if layer is not None:
            # Its weight is made anew at each look: what was merged into is a copy.
            layer.replace(weight)


def text_key(loras: Sequence[FrozenLora]) -> str:
    """What encoded captions also follow from; empty where no file changes a text encoder."""
    return "".join(f"{lora.sha256}:{lora.weights[1]!r};" for lora in loras if lora.changes_text)


def summed(loras: Sequence[FrozenLora], modules: Mapping[str, AdapterModule]) -> dict[str, AdapterModule]:
    """One plain LoRA that changes each weight as the frozen files and the new modules together: their ranks side by side.

    Args:
        loras: of low rank, as `read_frozen` has seen to.
        modules: the new adapter's, of low rank, by module path.
    """
    changes: dict[str, list[tuple[AdapterModule, float]]] = {}
    for lora in loras:
        for path, module in lora.modules.items():
            if lora.weight(path):
                changes.setdefault(path, []).append((module, lora.weight(path)))
    for path, module in modules.items():
        changes.setdefault(path, []).append((module, 1.0))
    shapes = {path: shape for lora in loras for path, shape in lora.shapes.items()}
    for path, module in modules.items():
        shapes.setdefault(path, layer_shape(module) or ())
    return {path: sum_modules(parts, shapes[path]) for path, parts in changes.items()}


def sum_metadata(loras: Sequence[FrozenLora], names: Sequence[str]) -> dict[str, str]:
    """What a file says that is a sum: of which frozen ones, at which weights, and of which new ones."""
    parts = [{"name": lora.name, "sha256": lora.sha256, "weights": list(lora.weights)} for lora in loras]
    return {SUM_KEY: json.dumps([*parts, *({"name": name} for name in names)], ensure_ascii=False)}


def on_top_metadata(loras: Sequence[FrozenLora]) -> dict[str, str]:
    """What a file says that was trained on top of others; empty where it was not."""
    parts = [{"name": lora.name, "sha256": lora.sha256, "weights": list(lora.weights)} for lora in loras]
    return {ON_TOP_KEY: json.dumps(parts, ensure_ascii=False)} if parts else {}
