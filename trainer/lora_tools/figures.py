"""The figures that the tools report, by layer and by block."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.lora_tools.names import block_of, in_model_order


@dataclass(frozen=True)
class LayerFigures:
    """What became of a layer.

    Attributes:
        name: its common name.
        rank_before: of its factors before; 0 where it had none.
        rank: of its factors now.
        norm: the Frobenius norm of its change before the cut.
        error: the Frobenius norm of what the cut lost, divided by `norm`.
    """

    name: str
    rank_before: int
    rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class BlockFigures:
    """The layers of a block together; `norm` and `error` as if they were one matrix."""

    block: str
    layers: int
    min_rank: int
    max_rank: int
    norm: float
    error: float


@dataclass(frozen=True)
class WrittenLora:
    """What every tool reports that writes a LoRA.

    Attributes:
        norm: the Frobenius norm of the whole change before the cut.
        error: the share of it that the cut lost.
        seconds: that all of it took.
    """

    output: str
    layers: int
    min_rank: int
    max_rank: int
    norm: float
    error: float
    size_bytes: int
    seconds: float
    blocks: tuple[BlockFigures, ...]


def written_figures(output: Path, layers: Sequence[LayerFigures], started: float) -> dict[str, Any]:
    """The fields of a WrittenLora; `started` is of `time.monotonic`."""
    return {
        "output": str(output),
        "layers": len(layers),
        "min_rank": min((layer.rank for layer in layers), default=0),
        "max_rank": max((layer.rank for layer in layers), default=0),
        "norm": total_norm(layers),
        "error": total_error(layers),
        "size_bytes": output.stat().st_size,
        "seconds": time.monotonic() - started,
        "blocks": by_block(layers),
    }


def by_block(layers: Iterable[LayerFigures]) -> tuple[BlockFigures, ...]:
    """Figures by block, in the model's order."""
    found = {layer.name: layer for layer in layers}
    groups: dict[str, list[LayerFigures]] = {}
    for name in in_model_order(found):
        groups.setdefault(block_of(name), []).append(found[name])
    return tuple(
        BlockFigures(
            block,
            len(group),
            min(layer.rank for layer in group),
            max(layer.rank for layer in group),
            total_norm(group),
            total_error(group),
        )
        for block, group in groups.items()
    )


def total_norm(layers: Sequence[LayerFigures]) -> float:
    """The Frobenius norm of all changes together."""
    return math.sqrt(sum(layer.norm**2 for layer in layers))


def total_error(layers: Sequence[LayerFigures]) -> float:
    """The share of that norm that was lost."""
    norm = total_norm(layers)
    return math.sqrt(sum((layer.error * layer.norm) ** 2 for layer in layers)) / norm if norm else 0.0
