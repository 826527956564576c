"""How large a method's change of a layer is, without torch: what a form says before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from trainer.config.adapter import AdapterConfig

ON_INPUT = ("ff.net.2", "fc2")
"""Layers of which (IA)³ scales the inputs: the second of an MLP, as in the paper."""


def num_parameters(config: AdapterConfig, rank: int, path: str, shape: Sequence[int]) -> int:
    """Numbers in the file for a layer.

    Args:
        config: the method and its settings.
        rank: of the layer's part of the model; not 0.
        path: the layer's path or name.
        shape: of its weight, `(out, in)` or `(out, in, kernel, kernel)`.
    """
    out, inputs, columns = shape[0], shape[1], prod(shape[1:])
    match config.method:
        case "dora":
            return rank * (out + columns) + (inputs if config.dora.axis == "input" else out)
        case "adalora":
            return round(config.adalora.target_share * rank * (out + columns))
        case "loha":
            return 2 * rank * (out + columns)
        case "lokr":
            (out1, out2), (in1, in2) = (factorize(side, config.lokr.factor) for side in (out, inputs))
            columns2 = in2 * prod(shape[2:])
            return out1 * in1 + (rank * (out2 + columns2) if is_split(rank, out2, in2) else out2 * columns2)
        case "oft":
            return out * block_size(out, rank)
        case "boft":
            size = butterfly_size(out, rank)
            return out * size * (out // size).bit_length() if size else 0
        case "ia3":
            return inputs if path.endswith(ON_INPUT) else out
    # PiSSA and OLoRA: as much again for the start, of a rank that the weight has.
    return (2 * min(rank, out, columns) if config.starts_in_base else rank) * (out + columns)


def factorize(size: int, factor: int) -> tuple[int, int]:
    """`size` as a product, the smaller first: with `factor` where it divides, else the nearest below (-1: most square)."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = factor if factor > 0 else size
    small = max(side for side in range(1, int(size**0.5) + 1) if size % side == 0 and side <= most)
    return small, size // small


def is_split(rank: int, out: int, inputs: int) -> bool:
    """Whether LoKr's larger factor is a product of that rank: where it saves something, as LyCORIS decides it."""
    return rank < max(out, inputs) / 2


def block_size(channels: int, most: int) -> int:
    """The largest divisor of `channels` of at least 2 that is at most `most`; 0 where there is none."""
    return max((size for size in range(2, most + 1) if channels % size == 0), default=0)


def butterfly_size(channels: int, most: int) -> int:
    """The largest even size, at most `most`, of which `channels` has a power of two; 0 where there is none."""
    sizes = (size for size in range(2, most + 1, 2) if channels % size == 0)
    return max((size for size in sizes if (channels // size).bit_count() == 1), default=0)
