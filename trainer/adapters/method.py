"""What the training asks of an adapter method, whichever it is, and what all methods share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.config.adapter import METHODS, PIVOTAL, AdapterConfig, TextEncoderLora, UnetLora
from trainer.errors import ConfigError, Finding, RunError
from trainer.lora_files.file import AdapterModule
from trainer.models.components import Components
from trainer.objects import load_object


class AdapterMethod(Protocol):
    """Trainable weights beside a frozen model. Weights are float32 whatever the model's own format is."""

    def attach(self, components: Components, seed: int) -> None:
        """Put the adapter into the model, in place; the model's outputs stay exactly what they were."""
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights by group, in a fixed order.

        A group is a part ("unet", "text_encoder"), learned vectors ("embedding"), or a part and, after a blank, what of it has a rate of its own.
        """
        ...

    def rate_factor(self, group: str) -> float:
        """What the part's learning rate is multiplied with for a group."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that the adapter is made of by name, for a checkpoint: trainable weights and what follows their training."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        ...

    def penalty(self) -> Tensor | None:
        """What is added to each step's loss, a scalar; None where the method adds nothing."""
        ...

    def after_step(self, step: int, total_steps: int) -> None:
        """What the method does after the update of step `step` (1 is the first), while the gradients are still there."""
        ...

    def export_modules(self) -> dict[str, AdapterModule]:
        """The change of each layer, by module path, for a file."""
        ...

    def notes(self) -> list[str]:
        """What the user should know of these settings on this model."""
        ...

    def outcome(self) -> str:
        """What the training made of the adapter, in a sentence; empty where the settings say it all."""
        ...


def build_method(config: AdapterConfig, trigger_word: str = "") -> AdapterMethod:
    """The method that an adapter's settings name; the trigger word is only needed where it gets vectors of its own."""
    if not config.embedding.num_vectors:
        return load_object(config.implementation)(config)
    # Any method can be without layers, and this one without more.
    inner = load_object(config.implementation if config.has_lora else METHODS["lora"].implementation)(config)
    return load_object(PIVOTAL)(config, inner, trigger_word)


def part_settings(config: AdapterConfig, part: str) -> UnetLora | TextEncoderLora:
    """What a part is trained with; all text encoders share theirs."""
    return config.unet if part == "unet" else config.text_encoder


def chosen_layers(components: Components, config: AdapterConfig) -> dict[str, list[str]]:
    """Paths of the layers that are trained, by part.

    Raises: ConfigError: a chosen set of layers does not exist in this model.
    """
    targets = components.family.target_modules(components, config)
    for part, paths in targets.items():
        if not paths:
            raise ConfigError(
                f"This base model has no layers of the set '{part_settings(config, part).targets}'.",
                where=f"adapter.{'unet' if part == 'unet' else 'text_encoder'}.targets",
            )
    return targets


def take_over(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into the adapter's. Raises RunError where names or shapes differ."""
    wrong = [name for name in own.keys() | state.keys() if not _same_shape(own.get(name), state.get(name))]
    if wrong:
        raise RunError(
            "The checkpoint's weights do not fit this model and these settings.",
            fix="Start a new run.",
            findings=[Finding(name, "is missing or has another shape") for name in sorted(wrong)],
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(state[name])


def _same_shape(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and first.shape == second.shape


_UP = " up"


def grouped(config: AdapterConfig, weights: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Weights by group, from their names ("unet.….up"): a group a part, and with LoRA+ one of its own for each part's `up`."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in weights:
        part = name.partition(".")[0]
        is_fast = config.method == "loraplus" and name.endswith(".up")
        groups.setdefault(part + _UP if is_fast else part, []).append(weight)
    return groups


def group_factor(config: AdapterConfig, group: str) -> float:
    """What a group of `grouped` multiplies its part's learning rate with (LoRA+, https://arxiv.org/abs/2402.12354)."""
    return config.loraplus.ratio if group.endswith(_UP) else 1.0


def rank_notes(config: AdapterConfig, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Says where a rank is higher than a layer can use; `shapes` has the weights' shapes by module path."""
    notes: list[str] = []
    for part in dict.fromkeys(path.partition(".")[0] for path in shapes):
        rank = part_settings(config, part).rank
        limits = [
            min(shape[0], shape[1:].numel()) for path, shape in shapes.items() if path.startswith(f"{part}.")
        ]  # fmt: skip
        above = sum(1 for limit in limits if rank > limit)
        if above:
            notes.append(
                f"Rank {rank} is higher than {above} of the {len(limits)} layers of the {part.replace('_', ' ')} can use "
                f"(the smallest: {min(limits)}); a lower rank learns as much in a smaller file."
            )
    return notes
