"""LoRA, rsLoRA and LoRA+: W x + scale * up(down(x)), with up = 0 at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from trainer.adapters.choice import Layers, chosen_layers
from trainer.adapters.lora_layer import CastTogether, Dropouts, LoraLayer, weight_shape
from trainer.adapters.method import group_factor, grouped, rank_notes, take_over
from trainer.config.adapter import AdapterConfig
from trainer.config.blocks import LayerChoice
from trainer.lora_files.file import AdapterModule, LoraModule
from trainer.models.components import Components


class LoraMethod:
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of the UNet and the text encoders.

    The scale is alpha / rank, or alpha / √rank of rsLoRA (https://arxiv.org/abs/2312.03732). Convolutions follow LoCon:
    `down` has the layer's own kernel, `up` is 1 x 1.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._layers: dict[str, LoraLayer] = {}
        self._choices: dict[str, LayerChoice] = {}

    def attach(self, components: Components, seed: int) -> None:
        """Inject the layers; equal seeds give equal weights, whatever the device and number format.

        Raises: ConfigError: a chosen set of layers does not exist in this model.
        """
        self.attach_to(chosen_layers(components, self._config), components, seed)

    def attach_to(self, chosen: Layers, components: Components, seed: int) -> None:
        """Inject these layers, whatever the settings choose; one that stands there already is in the new one."""
        own = self._config
        dropouts = Dropouts(own.dropout, own.rank_dropout, own.module_dropout)
        for part, paths in chosen.items():
            model, layers = getattr(components, part), dict[str, LoraLayer]()
            for path, choice in sorted(paths.items()):
                base, scale = model.get_submodule(path), self._config.scale(choice.rank, choice.alpha)
                layer = LoraLayer(base, choice.rank, scale, dropouts, components.device)
                model.set_submodule(path, layer)
                layers[f"{part}.{path}"] = layer
                self._choices[f"{part}.{path}"] = choice
            CastTogether(model, list(layers.values()), components.dtype)
            self._layers |= layers
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers.values():
            with torch.no_grad():
                start = torch.empty(layer.down.shape)
                if self._config.init == "orthogonal":
                    nn.init.orthogonal_(start, generator=generator)
                else:
                    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
                layer.down.copy_(start)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights of each part, sorted by layer: down, then up; with LoRA+ a part's `up` are a group."""
        return grouped(self._config, self._named())

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, layer in self._layers.items():
            yield f"{path}.down", layer.down
            yield f"{path}.up", layer.up

    def rate_factor(self, group: str) -> float:
        """LoRA+'s ratio for a group of `up`."""
        return group_factor(self._config, group)

    def state_dict(self) -> dict[str, Tensor]:
        """All trainable weights, float32, by `<module path>.down` and `.up`."""
        return {name: weight.detach() for name, weight in self._named()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        take_over(self.state_dict(), state)

    def penalty(self) -> None:
        """None."""
        return

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Shorten the changes that are longer than `max_norm`, both factors alike."""
        if not self._config.max_norm:
            return
        for layer in self._layers.values():
            rows, columns = layer.down.flatten(1), layer.up.flatten(1)
            # ‖up down‖² from two small matrices, not from the large one that they make.
            squares = ((columns.T @ columns) * (rows @ rows.T)).sum().clamp(min=0)
            ratio = (self._config.max_norm / (layer.scale * squares.sqrt())).clamp(max=1).sqrt()
            layer.down.mul_(ratio)
            layer.up.mul_(ratio)

    def export_modules(self) -> dict[str, AdapterModule]:
        """The layers with their weights and alpha."""
        modules: dict[str, AdapterModule] = {}
        for path, layer in self._layers.items():
            down, up = layer.down.detach(), layer.up.detach()
            modules[path] = LoraModule(down, up, alpha=self._alpha(self._choices[path]))
        return modules

    def _alpha(self, choice: LayerChoice) -> float:
        """The alpha that gives the scale as alpha / rank: files have no other way to say it."""
        return choice.alpha * math.sqrt(choice.rank) if self._config.method == "rslora" else choice.alpha

    def export_parts(self) -> dict[str, dict[str, AdapterModule]]:
        """None: it is one adapter."""
        return {}

    def notes(self) -> list[str]:
        """Says where a rank is higher than a layer can use."""
        return rank_notes(
            self._config,
            {path: weight_shape(layer.base) for path, layer in self._layers.items()},
        )

    def outcome(self) -> str:
        """Nothing."""
        return ""
