"""Which memory savers make a run fit, at the least cost. Pure: it is given what estimates a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from trainer.config.loading import build_config, merge, nest
from trainer.config.run import RunConfig
from trainer.errors import ConfigError, ResourceError
from trainer.units import size

Changes = dict[str, Any]
Measure = Callable[[RunConfig], int]


@dataclass(frozen=True)
class Place:
    """What is known of where a run will work.

    Attributes:
        device: "cpu", "cuda", "mps" or "xpu".
        precision: the number format that `auto` gives there.
        has_8bit: whether bitsandbytes' optimizers can be used.
    """

    device: str
    precision: str
    has_8bit: bool


@dataclass(frozen=True)
class Rung:
    """A step of the ladder: what it changes, given the settings so far (nothing where it does not apply), and what it costs."""

    title: str
    cost: str
    change: Callable[[RunConfig, Place], Changes]


@dataclass(frozen=True)
class Fit:
    """The settings that fit, the rungs that were taken with what was changed, and the bytes before and after."""

    config: RunConfig
    taken: tuple[tuple[Rung, Changes], ...]
    before: int
    after: int


def _bf16(config: RunConfig, place: Place) -> Changes:
    precision = place.precision if config.model.precision == "auto" else config.model.precision
    return {"model.precision": "bf16"} if precision == "fp32" else {}


def _optimizer(config: RunConfig, place: Place) -> Changes:
    suits = place.device == "cuda" and place.has_8bit and config.optimizer.name in ("adamw", "paged_adamw")
    return {"optimizer.name": "paged_adamw_8bit"} if suits else {}


def _checkpointing(config: RunConfig, _: Place) -> Changes:
    return {} if config.training.gradient_checkpointing else {"training.gradient_checkpointing": True}


def _packing(word: str, better_than: tuple[str, ...]) -> Callable[[RunConfig, Place], Changes]:
    return lambda config, _: {"model.quantization": word} if config.model.quantization in better_than else {}


def _offloading(share: float) -> Callable[[RunConfig, Place], Changes]:
    def change(config: RunConfig, place: Place) -> Changes:
        suits = place.device in ("cuda", "xpu") and config.training.offload_layers < share
        return {"training.offload_layers": share} if suits else {}

    return change


def _batch(config: RunConfig, _: Place) -> Changes:
    batch, accumulation = config.training.batch_size, config.training.gradient_accumulation
    smallest = next((part for part in (2, 3, 5, 7) if batch % part == 0), batch)
    if batch == 1 or accumulation * smallest > 256:
        return {}
    return {"training.batch_size": batch // smallest, "training.gradient_accumulation": accumulation * smallest}


_FEWER = Rung(
    "fewer pictures at once", "the same update from several passes; slower where the device was not full", _batch
)
LADDER: tuple[Rung, ...] = (
    Rung("bf16", "rounding far below what training notices; slow on processors without bf16", _bf16),
    Rung("8-bit paged AdamW", "nearly the same updates", _optimizer),
    Rung("gradient checkpointing", "about a third more time", _checkpointing),
    Rung(
        "base model in int8",
        "a little more time, an error below a hundredth in each weight",
        _packing("int8", ("none",)),
    ),
    Rung(
        "base model in NF4", "more time, an error of a tenth in each weight", _packing("nf4", ("none", "int8", "fp8"))
    ),
    Rung("half of the UNet off the device", "waits for the memory bus", _offloading(0.5)),
    Rung("nine tenths of the UNet off the device", "waits for the memory bus", _offloading(0.9)),
    *[_FEWER] * 6,
)


def fit(config: RunConfig, budget: int, measure: Measure, place: Place, ladder: Iterable[Rung] = LADDER) -> Fit:
    """Take rungs in order until the run fits into `budget` bytes, then leave out those that were not needed after all.

    Raises: ResourceError: it does not fit with all of them.
    """
    cache: dict[str, int] = {}

    def peak(candidate: RunConfig) -> int:
        key = candidate.model_dump_json()
        if key not in cache:
            cache[key] = measure(candidate)
        return cache[key]

    before, chosen, taken = peak(config), config, list[tuple[Rung, Changes]]()
    for rung in ladder:
        if peak(chosen) <= budget:
            break
        changes = rung.change(chosen, place)
        # A rung that frees nothing costs without use.
        changed = _with(chosen, changes) if changes else None
        if changed is not None and peak(changed) < peak(chosen):
            chosen = changed
            taken.append((rung, changes))
    if peak(chosen) > budget:
        raise ResourceError(
            f"This training does not fit into {size(budget)}: with everything that saves memory it needs {size(peak(chosen))}, "
            f"and as it is set {size(before)}.",
            where="--fit",
            fix="Lower data.resolution, train fewer layers (adapter.unet.targets) or at a lower rank, or choose a smaller base model.",
        )
    for step in list(taken):
        fewer = [other for other in taken if other is not step]
        candidate = _with(config, *(changes for _, changes in fewer))
        if candidate is not None and _is_independent(step, fewer) and peak(candidate) <= budget:
            taken, chosen = fewer, candidate
    return Fit(chosen, tuple(taken), before, peak(chosen))


def _is_independent(step: tuple[Rung, Changes], others: list[tuple[Rung, Changes]]) -> bool:
    """Whether no other step changes the same settings again, starting from what this one gave."""
    return not any(step[1].keys() & changes.keys() for _, changes in others)


def _with(config: RunConfig, *changes: Changes) -> RunConfig | None:
    """The changed settings; None where they do not go together with what the user chose."""
    try:
        return build_config(merge(config.model_dump(mode="json"), *(nest(each) for each in changes)))
    except ConfigError:
        return None
