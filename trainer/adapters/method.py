"""What the training asks of an adapter method, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from trainer.config.adapter import AnyAdapter
from trainer.lora_files.file import LoraModule
from trainer.models.components import Components
from trainer.objects import load_object


class AdapterMethod(Protocol):
    """Trainable weights beside a frozen model. Weights are float32 whatever the model's own format is."""

    def attach(self, components: Components, seed: int) -> None:
        """Put the adapter into the model, in place; the model's outputs stay exactly what they were."""
        ...

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable weights of each part ("unet", "text_encoder"), in a fixed order."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All trainable weights by name, for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        ...

    def export_modules(self) -> dict[str, LoraModule]:
        """The adapter as plain LoRA layers by module path, for a file."""
        ...

    def notes(self) -> list[str]:
        """What the user should know of these settings on this model."""
        ...


def build_method(config: AnyAdapter) -> AdapterMethod:
    """The method that an adapter's settings name."""
    return load_object(config.implementation)(config)
