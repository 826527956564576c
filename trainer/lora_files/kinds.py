"""Which kind of change a layer's parts make, and of what size, from their shapes alone. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.lora_files.formats.parts import IA3_FACTOR, MAGNITUDE, Part

Shape = tuple[int, ...]
Shapes = Mapping[Part, Shape]
MAX_RANK = 16_384
"""No layer of these models has more rows; a higher rank is a damaged file."""
BIAS_PARTS = ("diff_b", "b_norm")
"""Parts that change the layer's bias; every other one belongs to its weight."""


@dataclass(frozen=True)
class ModuleFacts:
    """What a layer's change is.

    Attributes:
        kind: as `trainer.lora_files.modules.AdapterModule.kind`; "dora" has the kind within in `inner`.
        rank: of the factors; None where there are none.
        out_features: rows of the weight that it fits; 0 where the parts do not say.
        in_features: input channels of that weight; 0 where the parts do not say.
        is_tucker: whether it is in Tucker form.
        is_convolution: whether it changes a kernel larger than 1 x 1.
        dora_axis: 0 or 1 for a DoRA by output or input channels; None for other kinds.
    """

    kind: str
    rank: int | None
    out_features: int
    in_features: int
    is_tucker: bool = False
    is_convolution: bool = False
    inner: str = ""
    dora_axis: int | None = None


@dataclass(frozen=True)
class _Kind:
    needed: tuple[Part, ...]
    optional: tuple[Part, ...]
    check: Callable[[Shapes], ModuleFacts]


def module_facts(shapes: Shapes) -> ModuleFacts:
    """The kind of the change that parts of these shapes make together.

    Raises: ValueError: they make none, or do not go together; the message says what is wrong.
    """
    parts = {part: shape for part, shape in shapes.items() if part not in BIAS_PARTS}
    for kind in _KINDS:
        if all(part in parts for part in kind.needed):
            unknown = parts.keys() - {*kind.needed, *kind.optional}
            if unknown:
                raise ValueError(f"the parts {', '.join(sorted(unknown))} do not belong to the others")
            if any(0 in shape for part, shape in parts.items()):
                raise ValueError("has rank 0 or an empty matrix")
            if "alpha" in parts and math.prod(parts["alpha"]) != 1:
                raise ValueError("has an alpha that is not one number")
            facts = kind.check(parts)
            if facts.rank is not None and facts.rank > MAX_RANK:
                raise ValueError(f"has the rank {facts.rank}, which no layer of these models can use")
            return _with_magnitude(facts, parts)
    raise ValueError(f"lacks a part: there is only {', '.join(sorted(parts)) or 'nothing'}")


def _with_magnitude(facts: ModuleFacts, parts: Shapes) -> ModuleFacts:
    if "dora_scale" in parts and MAGNITUDE in parts:
        raise ValueError("has two magnitudes of a DoRA")
    if MAGNITUDE in parts:
        axis, shape = 0, parts[MAGNITUDE]
    elif "dora_scale" in parts:
        shape = parts["dora_scale"]
        axis = _dora_axis(shape, facts)
    else:
        return facts
    count = math.prod(shape)
    # LoHa and LoKr hold input channels and kernel in one side; how many channels there are only the model says.
    if (count != facts.out_features) if axis == 0 else facts.in_features % count:
        raise ValueError(f"has {count} magnitudes for {(facts.out_features, facts.in_features)[axis]} channels")
    return ModuleFacts(
        "dora",
        facts.rank,
        facts.out_features,
        count if axis == 1 else facts.in_features,
        facts.is_tucker,
        facts.is_convolution,
        facts.kind,
        axis,
    )


def _dora_axis(shape: Shape, facts: ModuleFacts) -> int:
    sides = shape + (1,) * (2 - len(shape)) if len(shape) < 2 else shape
    if any(side != 1 for side in sides[2:]) or (sides[0] != 1 and sides[1] != 1):
        raise ValueError(f"has magnitudes of the shape {shape}, which is neither of rows nor of columns")
    if len(shape) == 1:
        # Some files lack the second side; rows first, as peft.
        return 0 if shape[0] == facts.out_features else 1
    if sides[1] != 1:
        return 1
    return 0 if sides[0] != 1 or facts.out_features == 1 else 1


def _check_lora(parts: Shapes) -> ModuleFacts:
    down, up, mid = parts["lora_down.weight"], parts["lora_up.weight"], parts.get("lora_mid.weight")
    sizes = f"down {down}, up {up}" + (f", mid {mid}" if mid else "")
    if len(down) not in (2, 4) or len(up) not in (2, 4):
        raise ValueError(f"has matrices of no known shape ({sizes})")
    if up[1] != down[0] or any(side != 1 for side in up[2:]):
        raise ValueError(f"has matrices that do not go together ({sizes})")
    if mid is not None and (len(mid) != 4 or mid[:2] != (down[0], down[0]) or any(side != 1 for side in down[2:])):
        raise ValueError(f"has matrices that do not go together ({sizes})")
    kernel = (mid or down)[2:]
    return ModuleFacts("lora", down[0], up[0], down[1], mid is not None, kernel not in ((), (1, 1)))


def _check_loha(parts: Shapes) -> ModuleFacts:
    products = []
    for number in "12":
        tucker = parts.get(f"hada_t{number}")
        products.append(_product(parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"], tucker))
    if products[0] != products[1] or ("hada_t1" in parts) != ("hada_t2" in parts):
        raise ValueError("has two products that do not go together")
    (rows, columns), rank = products[0], parts["hada_w1_b"][0]
    if parts["hada_w2_b"][0] != rank:
        raise ValueError("has two products of different ranks")
    is_tucker = "hada_t1" in parts
    # Without a Tucker core the columns are inputs times kernel, and nothing tells the kernel.
    inputs = parts["hada_w1_b"][1]
    return ModuleFacts("loha", rank, rows, inputs, is_tucker, is_tucker and columns != inputs)


def _check_lokr(parts: Shapes) -> ModuleFacts:
    sizes: list[tuple[int, int]] = []
    inputs, kernel = 1, 1
    rank: int | None = None
    for number in "12":
        whole, a, b = (parts.get(f"lokr_w{number}{end}") for end in ("", "_a", "_b"))
        tucker = parts.get("lokr_t2") if number == "2" else None
        if whole is not None and a is None and b is None and tucker is None and len(whole) > 1:
            sizes.append((whole[0], math.prod(whole[1:])))
            inputs *= whole[1]
            kernel *= math.prod(whole[2:])
        elif whole is None and a is not None and b is not None:
            sizes.append(_product(a, b, tucker))
            inputs *= b[1]
            kernel *= math.prod(tucker[2:]) if tucker else 1
            rank = b[0]
        else:
            raise ValueError(f"lacks a part of lokr_w{number}, or has it twice")
    return ModuleFacts("lokr", rank, sizes[0][0] * sizes[1][0], inputs, "lokr_t2" in parts, kernel > 1)


def _product(a: Shape, b: Shape, tucker: Shape | None) -> tuple[int, int]:
    """Rows and columns of a product of two factors, with or without a Tucker core."""
    if len(a) != 2 or len(b) != 2:
        raise ValueError(f"has factors of no known shape ({a}, {b})")
    if tucker is None:
        if a[1] != b[0]:
            raise ValueError(f"has factors that do not go together ({a}, {b})")
        return a[0], b[1]
    if len(tucker) != 4 or tucker[0] != a[0] or tucker[1] != b[0]:
        raise ValueError(f"has factors that do not go together ({tucker}, {a}, {b})")
    return a[1], b[1] * tucker[2] * tucker[3]


def _check_full(parts: Shapes) -> ModuleFacts:
    shape = parts["diff"]
    if len(shape) not in (1, 2, 4):
        raise ValueError(f"has a difference of no known shape ({shape})")
    return ModuleFacts(
        "full", None, shape[0], shape[1] if len(shape) > 1 else 0, is_convolution=math.prod(shape[2:]) > 1
    )


def _check_norm(parts: Shapes) -> ModuleFacts:
    if len(parts["w_norm"]) != 1:
        raise ValueError(f"has a norm's difference of no known shape ({parts['w_norm']})")
    return ModuleFacts("norm", None, parts["w_norm"][0], 0)


def _check_ia3(parts: Shapes) -> ModuleFacts:
    part = "weight" if "weight" in parts else IA3_FACTOR
    if sum(side != 1 for side in parts[part]) > 1:
        raise ValueError(f"has channel factors of no known shape ({parts[part]})")
    return ModuleFacts("ia3", None, 0, 0)


def _check_oft(parts: Shapes) -> ModuleFacts:
    shape = parts.get("oft_blocks", parts.get("oft_diag", ()))
    if len(shape) not in (3, 4) or shape[-1] != shape[-2]:
        raise ValueError(f"has blocks of no known shape ({shape})")
    return ModuleFacts("oft" if len(shape) == 3 else "boft", None, shape[-3] * shape[-1], 0)


def _check_input_oft(parts: Shapes) -> ModuleFacts:
    shape = parts["oft_R.weight"]
    if len(shape) != 2:
        raise ValueError(f"has rotations of no known shape ({shape})")
    return ModuleFacts("oft", None, 0, 0)


_SCALES = ("alpha", "dora_scale", MAGNITUDE)
_KINDS = (
    _Kind(("lora_down.weight", "lora_up.weight"), ("lora_mid.weight", *_SCALES), _check_lora),
    _Kind(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2", *_SCALES), _check_loha),
    *(
        _Kind((first, second), ("lokr_w1_b", "lokr_w2_b", "lokr_t2", *_SCALES), _check_lokr)
        for first in ("lokr_w1", "lokr_w1_a")
        for second in ("lokr_w2", "lokr_w2_a")
    ),
    _Kind(("diff",), _SCALES, _check_full),
    _Kind(("w_norm",), (), _check_norm),
    _Kind(("oft_blocks",), ("alpha", "rescale"), _check_oft),
    _Kind(("oft_diag",), ("alpha", "rescale"), _check_oft),
    _Kind(("oft_R.weight",), ("alpha",), _check_input_oft),
    _Kind(("weight", "on_input"), ("alpha",), _check_ia3),
    _Kind((IA3_FACTOR,), (), _check_ia3),
)
