"""The change of one layer's weight, as factors where it is of low rank and dense where it is not, and back to a module."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.lora_files.file import LoraModule
from trainer.lora_tools.lowrank import LowRank, Svd, decompose, decompose_dense, norm, singular_values, squares


@dataclass(frozen=True)
class Change:
    """What is added to a layer's weight.

    Attributes:
        matrix: the change flattened to `(out, in · kernel)`, float32, as factors or dense.
        shape: of the weight: `(out, in)` or `(out, in, kernel, kernel)`.
    """

    matrix: LowRank | Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Of the factors; 0 for a dense change."""
        return self.matrix.rank if isinstance(self.matrix, LowRank) else 0

    @property
    def flat_shape(self) -> tuple[int, int]:
        """`(out, in · kernel)`."""
        return self.shape[0], math.prod(self.shape[1:])

    def dense(self) -> Tensor:
        """`(out, in · kernel)`."""
        return self.matrix.dense() if isinstance(self.matrix, LowRank) else self.matrix

    def norm(self) -> float:
        """The Frobenius norm."""
        return norm(self.matrix) if isinstance(self.matrix, LowRank) else math.sqrt(squares(self.matrix))

    def singular_values(self, count: int | None = None) -> Tensor:
        """All of them, descending; of a dense change at least the first `count`, where that is enough."""
        if isinstance(self.matrix, LowRank):
            return singular_values(self.matrix)
        return torch.linalg.svdvals(self.matrix) if count is None else decompose_dense(self.matrix, count).values

    def decompose(self, rank: int | None = None) -> Svd:
        """The SVD; of a dense change the first `rank` values suffice."""
        return decompose(self.matrix) if isinstance(self.matrix, LowRank) else decompose_dense(self.matrix, rank)


def to_module(matrix: LowRank, shape: tuple[int, ...], alpha: float, dtype: torch.dtype) -> LoraModule:
    """A plain LoRA with this alpha whose change is `matrix`.

    Both factors of each rank get the same size, by a power of two, so that nothing is rounded by it and small weights do
    not fall below fp16's range.
    """
    scale = matrix.rank / alpha
    ups, downs = matrix.up.norm(dim=0) * scale, matrix.down.norm(dim=1)
    share = torch.where((ups > 0) & (downs > 0), downs / ups.clamp(min=1e-38), torch.ones_like(ups))
    factor = torch.exp2((share.log2() / 2).round())
    up = (matrix.up * (factor * scale)).to(dtype)
    down = (matrix.down / factor[:, None]).to(dtype)
    if len(shape) == 4:
        up = up[:, :, None, None]
    return LoraModule(down.reshape(matrix.rank, *shape[1:]), up, alpha)
