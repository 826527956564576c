"""Algebra of matrices given as a product `up @ down`: their singular values, sums, cuts and comparisons.

Nothing here forms the product where the rank is below its sides: a QR decomposition of both factors leaves a core of
the rank's size, and the core's SVD is the product's (Golub and Van Loan, "Matrix Computations", 4th ed., section 5.4.9).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_OVERSAMPLING = 16
_POWER_ITERATIONS = 4


@dataclass(frozen=True)
class LowRank:
    """The matrix `up @ down`, float32.

    Attributes:
        up: `(out, rank)`.
        down: `(rank, in)`.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of `up`; the product's own rank may be lower."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the product."""
        return self.up.shape[0], self.down.shape[1]

    def dense(self) -> Tensor:
        """The product, `(out, in)`."""
        return self.up @ self.down


@dataclass(frozen=True)
class Svd:
    """A singular value decomposition, `left @ diag(values) @ right`, perhaps without its smallest values.

    Attributes:
        left: `(out, k)`, orthonormal columns.
        values: `(k,)`, descending.
        right: `(k, in)`, orthonormal rows.
        beyond: sum of the squares of the values that were not computed; 0 for a whole decomposition.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    beyond: float = 0.0

    @property
    def energy(self) -> float:
        """Square of the matrix's Frobenius norm."""
        return squares(self.values) + self.beyond

    def lost(self, rank: int) -> float:
        """Square of the Frobenius norm of what a cut to `rank` loses; the least possible (Eckart and Young 1936)."""
        return squares(self.values[rank:]) + self.beyond

    def cut(self, rank: int) -> LowRank:
        """The best matrix of this rank, its values shared equally by both factors so that neither leaves fp16's range."""
        root = self.values[:rank].sqrt()
        return LowRank(self.left[:, :rank] * root, root[:, None] * self.right[:rank])


def squares(values: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(values.double().square().sum())


def concatenate(parts: Sequence[tuple[LowRank, float]]) -> LowRank:
    """Exactly `sum of weight * up @ down`. The weight scales `up` alone: scaling both factors would square it.

    Raises: ValueError: no parts, or products of different shapes.
    """
    if not parts or len({part.shape for part, _ in parts}) != 1:
        raise ValueError(f"parts of one shape are needed, not {[part.shape for part, _ in parts]}")
    ups = [part.up * weight for part, weight in parts]
    return LowRank(torch.cat(ups, 1), torch.cat([part.down for part, _ in parts]))


def decompose(matrix: LowRank) -> Svd:
    """The whole SVD of a product; `min(out, in, rank)` values."""
    up_basis, core = _core(matrix)
    left, values, right = torch.linalg.svd(core[0], full_matrices=False)
    if up_basis is not None:
        left = up_basis @ left
    if core[1] is not None:
        right = right @ core[1].T
    return Svd(left, values, right)


def singular_values(matrix: LowRank) -> Tensor:
    """The product's singular values, descending, `(min(out, in, rank),)`."""
    up, down = _triangle(matrix.up), _triangle(matrix.down.T)
    return torch.linalg.svdvals(up @ down.T)


def norm(matrix: LowRank) -> float:
    """The product's Frobenius norm; right also where its parts cancel each other."""
    return math.sqrt(squares(_triangle(matrix.up) @ _triangle(matrix.down.T).T))


def decompose_dense(matrix: Tensor, rank: int | None = None) -> Svd:
    """The SVD of a dense matrix, whole, or its first `rank` values by random projection.

    Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061, with power iterations, by torch.svd_lowrank; a
    fixed seed makes it repeatable. `Svd.beyond` is exact whichever way it was computed.

    Args:
        matrix: `(out, in)`, float32.
        rank: how many values are needed; None for all.
    """
    width = min(matrix.shape)
    wanted = width if rank is None else min(rank + _OVERSAMPLING, width)
    if 3 * wanted > width:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return Svd(left, values, right)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, columns = torch.svd_lowrank(matrix, q=wanted, niter=_POWER_ITERATIONS)
    right = columns.T
    kept = wanted - _OVERSAMPLING
    # The difference to what the cut itself gives would be lost in the rounding of two large sums.
    rest = matrix - (left[:, :kept] * values[:kept]) @ right[:kept]
    return Svd(left[:, :kept], values[:kept], right[:kept], squares(rest))


def inner(first: LowRank, second: LowRank) -> float:
    """The sum of the elementwise product of two matrices of one shape, without forming either."""
    return float(((first.up.T @ second.up) * (first.down @ second.down.T)).double().sum())


def cosine(first: LowRank, second: LowRank) -> float:
    """Cosine of the angle between two matrices of one shape as vectors; 0 where either is zero."""
    norms = norm(first) * norm(second)
    return max(-1.0, min(1.0, inner(first, second) / norms)) if norms else 0.0


def subspace_overlap(first: Tensor, second: Tensor) -> float:
    """How far the smaller of two subspaces lies in the other: 1 wholly, 0 orthogonal.

    The mean squared cosine of the principal angles, Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 7.2.

    Args:
        first, second: orthonormal columns, `(n, a)` and `(n, b)`.
    """
    smaller = min(first.shape[1], second.shape[1])
    return squares(first.T @ second) / smaller if smaller else 0.0


def effective_rank(values: Tensor) -> float:
    """The exponential of the entropy of normalised singular values, between 1 and their number; 0 for a zero matrix.

    Roy and Vetterli 2007, "The effective rank: A measure of effective dimensionality".
    """
    total = float(values.double().sum())
    if total <= 0:
        return 0.0
    shares = values.double() / total
    return math.exp(float(-torch.xlogy(shares, shares).sum()))


def numerical_rank(values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values stand out of float32's rounding; numpy's and MATLAB's rule."""
    if not values.numel():
        return 0
    floor = float(values[0]) * max(shape) * torch.finfo(torch.float32).eps
    return int((values > floor).sum())


def _core(matrix: LowRank) -> tuple[Tensor | None, tuple[Tensor, Tensor | None]]:
    """`matrix` as `basis @ core @ other basis.T`; a basis is None where it would be no smaller than its factor."""
    up_basis, up = torch.linalg.qr(matrix.up) if matrix.rank < matrix.shape[0] else (None, matrix.up)
    down_basis, down = torch.linalg.qr(matrix.down.T) if matrix.rank < matrix.shape[1] else (None, matrix.down.T)
    return up_basis, (up @ down.T, down_basis)


def _triangle(tall: Tensor) -> Tensor:
    """R of the QR decomposition, for which Q need not be formed."""
    return torch.linalg.qr(tall, mode="r").R if tall.shape[1] < tall.shape[0] else tall
