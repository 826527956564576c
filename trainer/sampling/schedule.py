"""LoRAs that work in a part of the sampling steps only: when each comes and goes, and which way is cheaper.

A LoRA can be merged into the weights when it begins and taken out when it ends, or stay beside the weights: its factors
are applied to what goes through each layer. The first costs once a change, the second in every step. Both give the
same picture up to rounding; the choice is made from known figures, not from a clock, so that it is the same each time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from trainer.models.components import Components
from trainer.sampling.stack import LoraStack, StackEntry

Way = Literal["auto", "merged", "beside"]
_TEXT_TOKENS = 77
_LEVEL = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.")


@dataclass(frozen=True)
class Costs:
    """What the two ways cost on a device, in seconds. `python -m benchmarks.stack --costs` measures them.

    Attributes:
        merge_layer, merge_element: of writing a layer's weight: once, and for each of its numbers.
        beside_layer: of a layer with factors beside it, each time that it is used: once,
        beside_product: for each multiplication with the factors,
        beside_output: and for each number of its output.
    """

    merge_layer: float
    merge_element: float
    beside_layer: float
    beside_product: float
    beside_output: float


COSTS = {
    # Measured on one core (Zen 4, float32); the ratios are what matters.
    "cpu": Costs(3.1e-5, 1.3e-9, 1.5e-5, 5.3e-12, 6.5e-9),
    # Not measured; from the rates of the parts: originals come over the bus at 12 GB/s, a kernel starts in 8 µs.
    "cuda": Costs(6e-5, 2.5e-10, 3e-5, 1e-14, 4e-12),
}


@dataclass(frozen=True)
class _Part:
    """An entry, its place in the stack, and the sampling steps in which it works: from `first` to before `last`."""

    index: int
    entry: StackEntry
    first: int
    last: int
    is_beside: bool = False

    def works_at(self, step: int) -> bool:
        return self.first <= step < self.last


class StackSchedule:
    """The stack at each sampling step. `trainer.sampling.sampler` calls `begin`, `at` for each step, and `end`.

    Args:
        stack: whose weights change.
        components: the same model.
        entries: all LoRAs; those that work in every step are merged once.
        way: "merged" or "beside" for all that come and go, "auto" for the cheaper way for each.
    """

    def __init__(
        self, stack: LoraStack, components: Components, entries: Sequence[StackEntry], way: Way = "auto"
    ) -> None:
        self._stack, self._components, self._entries, self._way = stack, components, tuple(entries), way
        self._parts: tuple[_Part, ...] = ()
        self._now: tuple[_Part, ...] | None = None
        self._text: tuple[StackEntry, ...] = ()
        self._handles: dict[_Part, list[RemovableHandle]] = {}

    @property
    def beside(self) -> tuple[StackEntry, ...]:
        """The entries that stay beside the weights in the present run."""
        return tuple(part.entry for part in self._parts if part.is_beside)

    def begin(self, num_steps: int, positions: int, batch: int) -> None:
        """Get ready for a run of so many steps.

        Args:
            num_steps: how often the model is asked.
            positions: latent pixels that go through the UNet at once, of all pictures in the batch.
            batch: pictures that go through it at once; with guidance each counts twice.

        Raises: LoraFileError, ConfigError: as `LoraStack.load`.
        """
        self.end()
        self._stack.load(self._entries)
        self._parts = tuple(self._part(index, num_steps, positions, batch) for index in range(len(self._entries)))

    def at(self, step: int) -> bool:
        """Make the weights those of a step, from 0. Returns whether the text encoders have changed since the last step."""
        now = tuple(part for part in self._parts if part.works_at(step))
        if now == self._now:
            return False
        merged = [replace(part.entry, unet_weight=0.0) if part.is_beside else part.entry for part in now]
        self._stack.set(merged, saying=[part.entry for part in now])
        for part in [part for part in self._handles if part not in now]:
            self._take_off(part)
        for part in now:
            if part.is_beside and part not in self._handles:
                self._handles[part] = self._put_beside(part.entry)
        text = tuple(part.entry for part in now if self._is_read(part.entry))
        has_changed = self._now is not None and text != self._text
        self._now, self._text = now, text
        return has_changed

    def end(self) -> None:
        """Take off what is beside the weights; what is merged stays until the next change."""
        for part in list(self._handles):
            self._take_off(part)
        self._now = None

    def _is_read(self, entry: StackEntry) -> bool:
        """Whether prompts read otherwise with it: it changes the text encoders, or brings words."""
        return bool(entry.text_encoder_weight) or (bool(entry.unet_weight) and self._stack.has_words(entry))

    def _take_off(self, part: _Part) -> None:
        for handle in self._handles.pop(part):
            handle.remove()

    def _part(self, index: int, num_steps: int, positions: int, batch: int) -> _Part:
        entry = self._entries[index]
        first = min(round(entry.start * num_steps), num_steps - 1)
        part = _Part(index, entry, first, max(round(entry.end * num_steps), first + 1))
        changes = (part.first > 0) + (part.last < num_steps)
        if not changes or self._way == "merged" or not self._can_be_beside(entry):
            return part
        if self._way == "beside":
            return replace(part, is_beside=True)
        costs = COSTS.get(self._components.device.type, COSTS["cuda"])
        merging = changes * self._merge_seconds(entry, costs)
        beside = (part.last - part.first) * self._beside_seconds(entry, costs, positions, batch)
        return replace(part, is_beside=beside < merging)

    def _layers(self, entry: StackEntry) -> dict[str, tuple[Any, float]]:
        return {path: pair for path, pair in self._stack.strengths(entry).items() if path.startswith("unet.")}

    def _module(self, path: str) -> nn.Module | None:
        try:
            return self._components.unet.get_submodule(path.removeprefix("unet."))
        except AttributeError:
            return None

    def _can_be_beside(self, entry: StackEntry) -> bool:
        """Whether every change of the UNet is a product of two factors on a plain layer."""
        return all(
            module.factors() is not None and type(self._module(path)) in (nn.Linear, nn.Conv2d)
            for path, (module, _) in self._layers(entry).items()
        )

    def _put_beside(self, entry: StackEntry) -> list[RemovableHandle]:
        handles: list[RemovableHandle] = []
        for path, (module, strength) in self._layers(entry).items():
            layer: Any = self._module(path)
            up, down = module.factors()
            up, down = (up * strength).to(layer.weight), down.to(layer.weight)
            handles.append(layer.register_forward_hook(_side_path(layer, up, down)))
        return handles

    def _merge_seconds(self, entry: StackEntry, costs: Costs) -> float:
        sizes = [layer.weight.numel() for path in self._layers(entry) if (layer := self._module(path)) is not None]  # type: ignore[union-attr]
        return sum(costs.merge_layer + costs.merge_element * size for size in sizes)

    def _beside_seconds(self, entry: StackEntry, costs: Costs, positions: int, batch: int) -> float:
        seconds = 0.0
        for path, (module, _) in self._layers(entry).items():
            layer: Any = self._module(path)
            rows, columns = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
            places = self._places(path, positions, batch)
            products = places * (rows + columns) * (module.rank or 1)
            seconds += costs.beside_layer + costs.beside_product * products + costs.beside_output * places * rows
        return seconds

    def _places(self, path: str, positions: int, batch: int) -> int:
        """How many vectors go through a layer: pixels of its level, words, or one a picture."""
        if path.endswith(("attn2.to_k", "attn2.to_v")):
            return _TEXT_TOKENS * batch
        if path.endswith(("time_emb_proj", "linear_1", "linear_2")):
            return batch
        last = len(self._components.unet.config["block_out_channels"]) - 1
        found = _LEVEL.match(path)
        if found is None:
            level = last if path.startswith("unet.mid_block") else 0
        else:
            level = int(found[2]) if found[1] == "down" else last - int(found[2])
        return max(batch, positions >> 2 * level)


def _side_path(layer: nn.Module, up: Tensor, down: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds `up(down(input))` to a layer's output."""
    if not isinstance(layer, nn.Conv2d):
        return lambda _layer, inputs, output: output + functional.linear(functional.linear(inputs[0], down), up)
    kernel = down.view(down.shape[0], *layer.weight.shape[1:])
    point = up.view(*up.shape, 1, 1)
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return lambda _layer, inputs, output: (
        output + functional.conv2d(functional.conv2d(inputs[0], kernel, **options), point)
    )
