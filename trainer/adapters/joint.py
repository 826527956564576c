"""Two low-rank adapters that learn at the same time on one model: W + B1 A1 + B2 A2, each with its layers, rank and rates.

It wraps two methods. Where both change a layer, the second stands on the first, and gradients reach both through one pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from trainer.adapters.choice import chosen_together
from trainer.adapters.lora import LoraMethod
from trainer.adapters.method import take_over
from trainer.config.adapter import AdapterConfig
from trainer.config.joint import FIRST, GROUP, SECOND
from trainer.lora_files.file import AdapterModule
from trainer.lora_tools.exact_sum import layer_shape, sum_modules
from trainer.models.components import Components

_PREFIX = f"{GROUP}."
_SUFFIX = f" {GROUP}"


class JointMethod:
    """Two plain LoRAs as one method.

    Args:
        config: the settings; `joint` is on.
        first, second: of `config.alone`, not yet attached.
    """

    def __init__(self, config: AdapterConfig, first: LoraMethod, second: LoraMethod) -> None:
        self._config = config
        self._first = first
        self._second = second

    def attach(self, components: Components, seed: int) -> None:
        """Inject both. Raises: ConfigError: a chosen set of layers does not exist in this model."""
        # Chosen before either stands in the other's way.
        first, second = chosen_together(components, self._config)
        self._first.attach_to(first, components, seed)
        # Another seed: two of one rank on one layer would be one.
        self._second.attach_to(second, components, seed ^ 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The first's groups, and the second's, which have a word more."""
        second = {f"{group}{_SUFFIX}": weights for group, weights in self._second.parameter_groups().items()}
        return {**self._first.parameter_groups(), **second}

    def rate_factor(self, group: str) -> float:
        """The method's own; of the second times `joint.rate`."""
        if group.endswith(_SUFFIX):
            return self._second.rate_factor(group.removesuffix(_SUFFIX)) * self._config.joint.rate
        return self._first.rate_factor(group)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of both, float32; the second's by `joint.<name>`."""
        second = {f"{_PREFIX}{name}": weight for name, weight in self._second.state_dict().items()}
        return {**self._first.state_dict(), **second}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        take_over(self.state_dict(), state)

    def penalty(self) -> None:
        """None."""
        return

    def after_step(self, step: int, total_steps: int) -> None:
        """What each does."""
        self._first.after_step(step, total_steps)
        self._second.after_step(step, total_steps)

    def export_modules(self) -> dict[str, AdapterModule]:
        """Their exact sum: where both change a layer, the ranks side by side."""
        first, second = self._first.export_modules(), self._second.export_modules()
        total = {**first, **second}
        for path in first.keys() & second.keys():
            total[path] = sum_modules([(first[path], 1.0), (second[path], 1.0)], layer_shape(first[path]) or ())
        return total

    def export_parts(self) -> dict[str, dict[str, AdapterModule]]:
        """Each by itself."""
        return {FIRST: self._first.export_modules(), SECOND: self._second.export_modules()}

    def notes(self) -> list[str]:
        """Those of both; of the second as such."""
        return [*self._first.notes(), *(f"The second LoRA: {note}" for note in self._second.notes())]

    def outcome(self) -> str:
        """What the files are."""
        return f"It is the exact sum of two, which are exported by themselves, too (-{FIRST} and -{SECOND})."
