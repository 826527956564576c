"""What the training asks of an adapter method, whichever it is, and what all methods share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trainer.config.adapter import JOINT, METHODS, PIVOTAL, AdapterConfig
from trainer.config.blocks import choose_layer, layer_rate
from trainer.errors import Finding, RunError
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

    def export_parts(self) -> dict[str, dict[str, AdapterModule]]:
        """The adapters that are trained jointly, each as `export_modules`, by what its file's name ends with; empty for one."""
        ...

    def notes(self) -> list[str]:
        """What the user should know of these settings on this model."""
        ...

    def outcome(self) -> str:
        """What the training made of the adapter, in a sentence; empty where the settings say it all."""
        ...


@runtime_checkable
class EndsItself(Protocol):
    """A method that has something to do before the end of a run, in steps that a run which was made shorter may not have."""

    def at_end(self) -> None:
        """Do what of it was not done."""
        ...


def num_kept(method: AdapterMethod) -> int:
    """How many numbers a checkpoint and a file keep of a method."""
    return sum(weight.numel() for weight in method.state_dict().values())


def end_early(method: AdapterMethod) -> None:
    """Let a method do what it still has to, where a run ends without another step."""
    if isinstance(method, EndsItself):
        method.at_end()


def build_method(config: AdapterConfig, trigger_word: str = "") -> AdapterMethod:
    """The method that an adapter's settings name; the trigger word is only needed where it gets vectors of its own."""
    # Any method can be without layers, and this one without more.
    own = [
        load_object(each.implementation if each.has_lora else METHODS["lora"].implementation)(each)
        for each in config.alone
    ]
    method = own[0] if len(own) == 1 else load_object(JOINT)(config, *own)
    return load_object(PIVOTAL)(config, method, trigger_word) if config.embedding.num_vectors else method


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


_UP, _RATE = "up", "x"


def grouped(config: AdapterConfig, weights: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Weights by group, from their names ("unet.….up").

    A group a part; of its own for each part's `up` with LoRA+ ("unet up"), and for each rate of blocks ("unet x0.5").
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, weight in weights:
        path = name.rpartition(".")[0]
        words = [path.partition(".")[0]]
        if config.method == "loraplus" and name.endswith(".up"):
            words.append(_UP)
        rate = layer_rate(config, path)
        if rate != 1:
            words.append(f"{_RATE}{rate!r}")
        groups.setdefault(" ".join(words), []).append(weight)
    return groups


def group_factor(config: AdapterConfig, group: str) -> float:
    """What a group of `grouped` multiplies its part's learning rate with (LoRA+, https://arxiv.org/abs/2402.12354)."""
    factor = 1.0
    for word in group.split(" ")[1:]:
        factor *= config.loraplus.ratio if word == _UP else float(word.removeprefix(_RATE))
    return factor


def rank_notes(config: AdapterConfig, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Says where a rank is higher than a layer can use; `shapes` has the weights' shapes by module path."""
    notes: list[str] = []
    for part in dict.fromkeys(path.partition(".")[0] for path in shapes):
        own = {path: shape for path, shape in shapes.items() if path.startswith(f"{part}.")}
        limits = {path: min(shape[0], shape[1:].numel()) for path, shape in own.items()}
        ranks = {path: choose_layer(config, path, shape).rank for path, shape in own.items()}
        above = [path for path in own if ranks[path] > limits[path]]
        if above:
            highest = max(ranks[path] for path in above)
            notes.append(
                f"Rank {highest} is higher than {len(above)} of the {len(own)} layers of the {part.replace('_', ' ')} can use "
                f"(the smallest: {min(limits[path] for path in above)}); a lower rank learns as much in a smaller file."
            )
    return notes
