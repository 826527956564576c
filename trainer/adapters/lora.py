"""LoRA through peft: W x + alpha / rank * up(down(x)), with up = 0 at the start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.config.adapter import LoraConfig, TextEncoderLora, UnetLora
from trainer.errors import ConfigError, Finding, RunError
from trainer.lora_files.file import LoraModule
from trainer.models.components import Components

_ADAPTER = "default"


class LoraMethod:
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685) of the UNet and the text encoders.

    Convolutions follow LoCon: `down` has the layer's own kernel, `up` is 1 x 1.
    """

    def __init__(self, config: LoraConfig) -> None:
        self._config = config
        self._layers: dict[str, LoraLayer] = {}

    def attach(self, components: Components, seed: int) -> None:
        """Inject the layers; equal seeds give equal weights, whatever the device and number format.

        Raises: ConfigError: a chosen set of layers does not exist in this model.
        """
        targets = components.family.target_modules(components, self._config)
        for part, paths in targets.items():
            settings = _settings(self._config, part)
            if not paths:
                raise ConfigError(
                    f"This base model has no layers of the set '{settings.targets}'.",
                    where=f"adapter.{'unet' if part == 'unet' else 'text_encoder'}.targets",
                )
            model = getattr(components, part)
            peft.inject_adapter_in_model(self._peft_config(settings, paths), model, _ADAPTER)
            found = {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}
            if found.keys() != set(paths):
                raise RuntimeError(f"peft wrapped {len(found)} layers instead of {len(paths)} in the {part}")
            self._layers |= {f"{part}.{path}": found[path] for path in sorted(found)}
        self._initialise(seed)

    def _peft_config(self, settings: UnetLora | TextEncoderLora, paths: list[str]) -> peft.LoraConfig:
        return peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type] - peft divides it, whole or not
            target_modules=paths,
            lora_dropout=self._config.dropout,
            init_lora_weights=False,
        )

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for layer in self._layers.values():
            # peft makes them in the base weight's format; Adam's small steps would vanish in bf16.
            down, up = (weight.requires_grad_(True) for weight in _weights(layer, torch.float32))
            with torch.no_grad():
                start = torch.empty(down.shape)
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
                down.copy_(start)
                up.zero_()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights of each part, sorted by layer: down, then up."""
        groups: dict[str, list[nn.Parameter]] = {}
        for path, layer in self._layers.items():
            weights = groups.setdefault(path.partition(".")[0], [])
            weights += _weights(layer)
        return groups

    def state_dict(self) -> dict[str, Tensor]:
        """All trainable weights, float32, by `<module path>.down` and `.up`."""
        state: dict[str, Tensor] = {}
        for path, layer in self._layers.items():
            down, up = _weights(layer)
            state[f"{path}.down"], state[f"{path}.up"] = down.detach(), up.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        own = self.state_dict()
        wrong = [name for name in own.keys() | state.keys() if not _same_shape(own.get(name), state.get(name))]
        if wrong:
            raise RunError(
                "The checkpoint's weights do not fit this model and these settings.",
                fix="Start a new run.",
                findings=[Finding(name, "is missing or has another shape") for name in sorted(wrong)],
            )
        for name, weight in own.items():
            weight.copy_(state[name])

    def export_modules(self) -> dict[str, LoraModule]:
        """The layers with their weights and alpha."""
        modules: dict[str, LoraModule] = {}
        for path, layer in self._layers.items():
            down, up = _weights(layer)
            modules[path] = LoraModule(down.detach(), up.detach(), alpha=float(layer.lora_alpha[_ADAPTER]))
        return modules

    def notes(self) -> list[str]:
        """Says where a rank is higher than a layer can use."""
        notes: list[str] = []
        for part in dict.fromkeys(path.partition(".")[0] for path in self._layers):
            rank = _settings(self._config, part).rank
            limits = [_full_rank(layer) for path, layer in self._layers.items() if path.startswith(f"{part}.")]
            above = sum(1 for limit in limits if rank > limit)
            if above:
                notes.append(
                    f"Rank {rank} is higher than {above} of the {len(limits)} layers of the {part.replace('_', ' ')} can use "
                    f"(the smallest: {min(limits)}); a lower rank learns as much in a smaller file."
                )
        return notes


def _settings(config: LoraConfig, part: str) -> UnetLora | TextEncoderLora:
    """What a part is trained with; all text encoders share theirs."""
    return config.unet if part == "unet" else config.text_encoder


def _weights(layer: LoraLayer, dtype: torch.dtype | None = None) -> tuple[nn.Parameter, nn.Parameter]:
    """The trainable weights (down, up) of a layer, first brought to `dtype` if one is given."""
    modules = [cast(nn.Module, part[_ADAPTER]) for part in (layer.lora_A, layer.lora_B)]
    down, up = (cast(nn.Parameter, (module.to(dtype) if dtype else module).weight) for module in modules)
    return down, up


def _same_shape(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape


def _full_rank(layer: LoraLayer) -> int:
    weight = cast(Tensor, layer.get_base_layer().weight)
    return min(weight.shape[0], weight[0].numel())
