"""Tensors of a file to modules: one function a kind, chosen by `trainer.lora_files.kinds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.lora_files.formats.parts import IA3_FACTOR, MAGNITUDE, Part
from trainer.lora_files.kinds import ModuleFacts
from trainer.lora_files.modules import AdapterModule, DifferenceModule, LohaModule, LokrModule, LoraModule
from trainer.lora_files.relative import DoraModule, Ia3Module, InputOftModule, OftModule

Parts = Mapping[Part, Tensor]


@dataclass(frozen=True)
class Surroundings:
    """What a file says of all its modules outside of the tensors.

    Attributes:
        alphas: by module, from settings beside the tensors.
        peft: the peft library's settings; empty for other files.
    """

    alphas: Mapping[str, float] = field(default_factory=dict)
    peft: Mapping[str, Any] = field(default_factory=dict)


def build_module(name: str, facts: ModuleFacts, parts: Parts, surroundings: Surroundings) -> AdapterModule:
    """The module that the parts of a layer's weight make; `facts` has checked their shapes.

    Raises: ValueError: a number is not what it should be.
    """
    kind = facts.inner or facts.kind
    alpha = _alpha(name, facts, parts, surroundings)
    module = _BUILDERS[kind](parts, alpha, surroundings.peft)
    if facts.dora_axis is None:
        return module
    magnitude = parts[MAGNITUDE] if MAGNITUDE in parts else parts["dora_scale"]
    sides = [1] * (4 if facts.is_convolution or magnitude.ndim == 4 else 2)
    sides[facts.dora_axis] = -1
    return DoraModule(module, magnitude.reshape(sides), facts.dora_axis)


def bias_modules(parts: Parts) -> list[DifferenceModule]:
    """The change of the layer's bias, if the parts have one.

    Raises: ValueError: there are two.
    """
    found = [DifferenceModule(parts[part].flatten(), part) for part in ("diff_b", "b_norm") if part in parts]
    if len(found) > 1:
        raise ValueError("changes its bias twice")
    return found


def _alpha(name: str, facts: ModuleFacts, parts: Parts, surroundings: Surroundings) -> float:
    """The scale's numerator; where a file has none, or 0, the rank: the scale 1, as every other program."""
    value = float(parts["alpha"].item()) if "alpha" in parts else surroundings.alphas.get(name, 0.0)
    if facts.kind in ("oft", "boft"):
        return value
    if facts.rank is None:
        return 1.0
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("has an infinite alpha")
    return value or float(facts.rank)


def _lora(parts: Parts, alpha: float, _peft: Mapping[str, Any]) -> AdapterModule:
    return LoraModule(parts["lora_down.weight"], parts["lora_up.weight"], alpha, parts.get("lora_mid.weight"))


def _loha(parts: Parts, alpha: float, _peft: Mapping[str, Any]) -> AdapterModule:
    return LohaModule(_factors(parts, "hada", "1"), _factors(parts, "hada", "2"), alpha)


def _lokr(parts: Parts, alpha: float, peft: Mapping[str, Any]) -> AdapterModule:
    first, second = _factors(parts, "lokr", "1"), _factors(parts, "lokr", "2")
    if peft.get("r") and len(first) == len(second) == 1:
        # peft scales also where both are whole, which no kohya file says.
        first = (first[0].float() * (float(peft.get("alpha", peft["r"])) / float(peft["r"])),)
    return LokrModule(first, second, alpha)


def _factors(parts: Parts, family: str, number: str) -> tuple[Tensor, ...]:
    whole = parts.get(f"{family}_w{number}")
    if whole is not None:
        return (whole,)
    pair = (parts[f"{family}_w{number}_a"], parts[f"{family}_w{number}_b"])
    tucker = parts.get(f"{family}_t{number}")
    return pair if tucker is None else (tucker, *pair)


def _full(parts: Parts, _alpha: float, _peft: Mapping[str, Any]) -> AdapterModule:
    return DifferenceModule(parts["diff"])


def _norm(parts: Parts, _alpha: float, _peft: Mapping[str, Any]) -> AdapterModule:
    return DifferenceModule(parts["w_norm"], "w_norm")


def _oft(parts: Parts, alpha: float, peft: Mapping[str, Any]) -> AdapterModule:
    if "oft_R.weight" in parts:
        return InputOftModule(parts["oft_R.weight"], _neumann_terms(peft))
    if "oft_diag" in parts:
        return OftModule(parts["oft_diag"], 0.0, parts.get("rescale"))
    return OftModule(parts["oft_blocks"], alpha, parts.get("rescale"))


def _neumann_terms(peft: Mapping[str, Any]) -> int:
    if not peft.get("use_cayley_neumann", True):
        return 0
    terms = int(peft.get("num_cayley_neumann_terms", 5))
    # peft's loop makes four terms of three.
    return 4 if terms == 3 else max(1, terms)


def _ia3(parts: Parts, _alpha: float, _peft: Mapping[str, Any]) -> AdapterModule:
    if IA3_FACTOR in parts:
        factor = parts[IA3_FACTOR].float() - 1
        return Ia3Module(factor.flatten(), on_input=factor.ndim > 1 and factor.shape[1] != 1)
    return Ia3Module(parts["weight"], on_input=bool(torch.round(parts["on_input"].float()).item()))


_BUILDERS: dict[str, Callable[[Parts, float, Mapping[str, Any]], AdapterModule]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "norm": _norm,
    "oft": _oft,
    "boft": _oft,
    "ia3": _ia3,
}
