"""Methods that make a change of the whole weight: W x becomes (W + ΔW) x, with ΔW of the very module that is exported.

So a file is exactly what was trained, and a method is its start and the kind of module that it makes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.adapters.choice import chosen_layers
from trainer.adapters.dropout import module_mask, row_mask
from trainer.adapters.method import group_factor, grouped, rank_notes, take_over
from trainer.config.adapter import METHODS, AdapterConfig
from trainer.lora_files.file import AdapterModule
from trainer.lora_files.layouts import facts_of
from trainer.lora_files.targets import TARGETS, kind_label
from trainer.models.components import Components
from trainer.models.devices import without_autocast


@dataclass(frozen=True)
class Site:
    """A layer that gets a change.

    Attributes:
        path: its module path, beginning with the part of the model.
        weight: the frozen weight, `(out, in)` or `(out, in, kernel, kernel)`.
        rank, alpha: its own.
        generator: where the start is drawn from, on the CPU.
    """

    path: str
    weight: Tensor
    rank: int
    alpha: float
    generator: torch.Generator

    def normal(self, *shape: int, std: float) -> nn.Parameter:
        """A trainable tensor, normally distributed."""
        return self.trainable(torch.randn(shape, generator=self.generator) * std)

    def kaiming(self, *shape: int) -> nn.Parameter:
        """A trainable tensor as torch's own layers start."""
        start = torch.empty(shape)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=self.generator)
        return self.trainable(start)

    def zeros(self, *shape: int) -> nn.Parameter:
        """A trainable tensor of zeros."""
        return self.trainable(torch.zeros(shape))

    def trainable(self, start: Tensor) -> nn.Parameter:
        """A trainable tensor, float32, where the weight is."""
        return nn.Parameter(start.to(self.weight.device, torch.float32))


class Change(nn.Module, ABC):
    """The trained change of one weight; at the start it is exactly zero."""

    @abstractmethod
    def module(self, tensors: Mapping[str, Tensor]) -> AdapterModule:
        """The change as files hold it, made of this object's parameters and buffers by name; differentiable."""

    def delta_weight(self, weight: Tensor) -> Tensor:
        """ΔW, float32."""
        return self.module(self.named()).delta_weight(weight)

    def named(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}


class ChangedLayer(nn.Module):
    """A linear layer or convolution in whose place it stands, with a change of its weight."""

    def __init__(self, base: nn.Linear | nn.Conv2d, change: Change, config: AdapterConfig) -> None:
        super().__init__()
        self.base = base
        self.change = change
        self._rank_dropout = config.rank_dropout
        self._module_dropout = config.module_dropout

    @property
    def weight(self) -> Tensor:
        """The frozen weight: models look at its format and device."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        return self.base.bias

    def forward(self, inputs: Tensor, *_: object) -> Tensor:
        """The changed layer's output; further arguments (a LoRA scale of old) are for other layers."""
        weight = self.base.weight
        # Mixed precision would compute the product of the factors in 16 bits.
        with without_autocast(weight.device):
            delta = self._delta(weight.dtype)
            if self.training and self._rank_dropout:
                delta = delta * row_mask(delta, self._rank_dropout)
            if self.training and self._module_dropout:
                delta = delta * module_mask(self._module_dropout)
        if weight.dtype == torch.float32:
            return _apply(self.base, inputs, weight + delta, self.base.bias)
        # Added to a weight of 16 bits, a small change would be rounded away.
        return self.base(inputs) + _apply(self.base, inputs, delta, None)

    def _delta(self, dtype: torch.dtype) -> Tensor:
        """ΔW, in the format in which it is used.

        What it is made of is as large as the weight, in float32, several times over: it is made again in the backward pass
        (to the bit: nothing in it is random) and not kept until then. Nor is the weight that it follows from, which a packed
        or offloaded layer makes for each use.
        """

        def make() -> Tensor:
            return self.change.delta_weight(self.base.weight).to(dtype)

        if not torch.is_grad_enabled():
            return make()
        return checkpoint(make, use_reentrant=False, preserve_rng_state=False)


def _apply(layer: nn.Linear | nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return functional.linear(inputs, weight, bias)
    return functional.conv2d(inputs, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class ChangedWeights:
    """An adapter method whose layers have a `Change` each.

    Args:
        config: the settings.
        make: makes the change of a layer.
    """

    def __init__(self, config: AdapterConfig, make: Callable[[AdapterConfig, Site], Change]) -> None:
        self._config = config
        self._make = make
        self._layers: dict[str, ChangedLayer] = {}

    def attach(self, components: Components, seed: int) -> None:
        """Put the layers into the place of those they change; equal seeds give equal weights.

        Raises: ConfigError: a chosen set of layers does not exist in this model, or does not suit the method.
        """
        generator = torch.Generator().manual_seed(seed)
        for part, paths in chosen_layers(components, self._config).items():
            model = getattr(components, part)
            for path, choice in paths.items():
                base = model.get_submodule(path)
                site = Site(f"{part}.{path}", base.weight.detach(), choice.rank, choice.alpha, generator)
                layer = ChangedLayer(base, self._make(self._config, site), self._config)
                layer.train(base.training)
                model.set_submodule(path, layer)
                self._layers[site.path] = layer

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights of each part, sorted by layer."""
        return grouped(self._config, self._named())

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, change in self.changes().items():
            for name, weight in change.named_parameters():
                yield f"{path}.{name}", weight

    def rate_factor(self, group: str) -> float:
        """LoRA+'s ratio for a group of `up`."""
        return group_factor(self._config, group)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers of all layers, float32, by `<module path>.<name>`."""
        return {
            f"{path}.{name}": tensor.detach()
            for path, change in self.changes().items()
            for name, tensor in change.named().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        take_over(self.state_dict(), state)

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def after_step(self, step: int, total_steps: int) -> None:
        """Nothing."""

    def changes(self) -> dict[str, Change]:
        """The change of each layer by module path."""
        return {path: layer.change for path, layer in self._layers.items()}

    def export_modules(self) -> dict[str, AdapterModule]:
        """The change of each layer as files hold it."""
        with torch.no_grad():
            return {
                path: change.module({name: tensor.detach() for name, tensor in change.named().items()})
                for path, change in self.changes().items()
            }

    def export_parts(self) -> dict[str, dict[str, AdapterModule]]:
        """None: it is one adapter."""
        return {}

    def notes(self) -> list[str]:
        """Which tools do not read the file, and where a low rank is higher than a layer can use."""
        modules = self.export_modules().values()
        kinds = {kind_label(facts_of(module), module.tensors()) for module in modules}
        deaf = [tool.title for tool in TARGETS.values() if not kinds <= tool.kinds]
        notes = []
        if deaf:
            base = " with --base" if any(module.needs_original() for module in modules) else ""
            notes.append(
                f"{METHODS[self._config.method].title} files are not applied by {', '.join(deaf)}; `inkwash lora resize`{base} "
                "makes a plain LoRA of one."
            )
        if kinds <= {"lora", "dora by input", "dora by output"}:
            notes += rank_notes(self._config, {path: layer.weight.shape for path, layer in self._layers.items()})
        return notes

    def outcome(self) -> str:
        """Nothing."""
        return ""
