"""Which weights an optimizer's memory and an average are of: both are kept by the weights' numbers, group after group.

Other settings (LoRA+, a rate for some blocks) divide the same weights into other groups, and give them other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from trainer.adapters.method import AdapterMethod

WeightOrder = Mapping[str, Sequence[str]]
"""The names of the trained weights by group, both in the order of their numbers."""


def weight_order(adapter: AdapterMethod) -> dict[str, list[str]]:
    """The trained weights' names, which are those of the adapter's state, by group."""
    names = {(tensor.data_ptr(), tensor.shape): name for name, tensor in adapter.state_dict().items()}
    groups = adapter.parameter_groups()
    return {group: [names[weight.data_ptr(), weight.shape] for weight in weights] for group, weights in groups.items()}


def is_same_order(first: WeightOrder, second: WeightOrder) -> bool:
    """Whether all weights have the same number and group in both."""
    return [(group, list(names)) for group, names in first.items()] == [
        (group, list(names)) for group, names in second.items()
    ]


def renumbered(tensors: Mapping[str, Tensor], before: WeightOrder, now: WeightOrder) -> dict[str, Tensor]:
    """A tensor a weight, by its number in `before`, by its number in `now`; weights must be the same."""
    numbers = {name: str(index) for index, name in enumerate(_all(before))}
    return {str(index): tensors[numbers[name]] for index, name in enumerate(_all(now))}


def _all(order: WeightOrder) -> list[str]:
    return [name for names in order.values() for name in names]
