"""LoRA, rsLoRA and LoRA+ through peft: W x + scale * up(down(x)), with up = 0 at the start."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.adapters.choice import chosen_layers
from trainer.adapters.dropout import drop_ranks
from trainer.adapters.method import group_factor, grouped, rank_notes, take_over
from trainer.config.adapter import AdapterConfig
from trainer.config.blocks import LayerChoice
from trainer.lora_files.file import AdapterModule, LoraModule
from trainer.models.components import Components

_ADAPTER = "default"


class LoraMethod:
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of the UNet and the text encoders.

    The scale is alpha / rank, or alpha / √rank of rsLoRA (https://arxiv.org/abs/2312.03732). Convolutions follow LoCon:
    `down` has the layer's own kernel, `up` is 1 x 1.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._layers: dict[str, LoraLayer] = {}

    def attach(self, components: Components, seed: int) -> None:
        """Inject the layers; equal seeds give equal weights, whatever the device and number format.

        Raises: ConfigError: a chosen set of layers does not exist in this model.
        """
        for part, paths in chosen_layers(components, self._config).items():
            model = getattr(components, part)
            peft.inject_adapter_in_model(self._peft_config(paths), model, _ADAPTER)
            found = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
            if found.keys() != set(paths):
                raise RuntimeError(f"peft wrapped {len(found)} layers instead of {len(paths)} in the {part}")
            self._layers |= {f"{part}.{path}": found[path] for path in sorted(found)}
        self._initialise(seed)

    def _peft_config(self, layers: Mapping[str, LayerChoice]) -> peft.LoraConfig:
        usual = next(iter(layers.values()))
        # peft reads the names as regular expressions.
        others = {f"^{re.escape(path)}": choice for path, choice in layers.items() if choice != usual}
        return peft.LoraConfig(
            r=usual.rank,
            lora_alpha=self._alpha(usual),  # type: ignore[arg-type] - peft divides it, whole or not
            rank_pattern={name: choice.rank for name, choice in others.items()},
            alpha_pattern={name: self._alpha(choice) for name, choice in others.items()},  # type: ignore[arg-type]
            target_modules=list(layers),
            lora_dropout=self._config.dropout,
            init_lora_weights=False,
        )

    def _alpha(self, choice: LayerChoice) -> float:
        """The alpha that gives the scale as alpha / rank: files have no other way to say it."""
        return choice.alpha * math.sqrt(choice.rank) if self._config.method == "rslora" else choice.alpha

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers.values():
            # peft makes them in the base weight's format; Adam's small steps would vanish in bf16.
            down, up = (weight.requires_grad_(True) for weight in _weights(layer, torch.float32))
            drop_ranks(cast(nn.Module, layer.lora_A[_ADAPTER]), self._config)
            cast(nn.Module, layer).train(cast(nn.Module, layer.get_base_layer()).training)
            with torch.no_grad():
                start = torch.empty(down.shape)
                if self._config.init == "orthogonal":
                    nn.init.orthogonal_(start, generator=generator)
                else:
                    nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
                down.copy_(start)
                up.zero_()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights of each part, sorted by layer: down, then up; with LoRA+ a part's `up` are a group."""
        return grouped(self._config, self._named())

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, layer in self._layers.items():
            down, up = _weights(layer)
            yield f"{path}.down", down
            yield f"{path}.up", up

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
            down, up = _weights(layer)
            rows, columns = down.flatten(1), up.flatten(1)
            # ‖up down‖² from two small matrices, not from the large one that they make.
            squares = ((columns.T @ columns) * (rows @ rows.T)).sum().clamp(min=0)
            ratio = (self._config.max_norm / (layer.scaling[_ADAPTER] * squares.sqrt())).clamp(max=1).sqrt()
            down.mul_(ratio)
            up.mul_(ratio)

    def export_modules(self) -> dict[str, AdapterModule]:
        """The layers with their weights and alpha."""
        modules: dict[str, AdapterModule] = {}
        for path, layer in self._layers.items():
            down, up = _weights(layer)
            modules[path] = LoraModule(down.detach(), up.detach(), alpha=float(layer.lora_alpha[_ADAPTER]))
        return modules

    def notes(self) -> list[str]:
        """Says where a rank is higher than a layer can use."""
        return rank_notes(
            self._config,
            {path: cast(Tensor, layer.get_base_layer().weight).shape for path, layer in self._layers.items()},
        )

    def outcome(self) -> str:
        """Nothing."""
        return ""


def _weights(layer: LoraLayer, dtype: torch.dtype | None = None) -> tuple[nn.Parameter, nn.Parameter]:
    """The trainable weights (down, up) of a layer, first brought to `dtype` if one is given."""
    modules = [cast(nn.Module, part[_ADAPTER]) for part in (layer.lora_A, layer.lora_B)]
    down, up = (cast(nn.Parameter, (module.to(dtype) if dtype else module).weight) for module in modules)
    return down, up
