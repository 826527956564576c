"""What a LoRA file changes in one weight, kind by kind: kinds whose change does not depend on the weight.

`trainer.lora_files.relative` has the kinds that do (DoRA, OFT, BOFT, (IA)³).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AdapterModule(Protocol):
    """The change of one tensor of a model: a layer's weight, or a bias."""

    @property
    def kind(self) -> str:
        """ "lora", "loha", "lokr", "full", "norm", "bias", "dora", "oft", "boft" or "ia3"."""
        ...

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None where there are none."""
        ...

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """`(up, down)`, float32, `(out, r)` and `(r, in * kernel)`, every scale folded in: `up @ down` is ΔW flattened.

        None where ΔW is not low-rank by construction or depends on the weight that it is applied to.
        """
        ...

    def delta_weight(self, original: Tensor) -> Tensor:
        """Exact ΔW, float32, of the shape and on the device of `original`.

        Kinds for which `needs_original` is false use only its shape and device.
        """
        ...

    def needs_original(self) -> bool:
        """Whether ΔW depends on the values of the weight that it is applied to."""
        ...

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether ΔW can be a change of a tensor of this shape."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by part name as the kohya layout writes them ("lora_up.weight", "alpha", …)."""
        ...


def flat_size(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a weight seen as a matrix: `(out, in * kernel)`."""
    columns = 1
    for side in shape[1:]:
        columns *= side
    return shape[0], columns


@dataclass(frozen=True)
class LoraModule:
    """A low-rank change (LoRA, LoCon): `alpha / rank * up @ down`.

    Attributes:
        down: `(rank, in)` for linear layers, `(rank, in, kernel, kernel)` for convolutions.
        up: `(out, rank)`, or `(out, rank, 1, 1)`.
        alpha: the scale's numerator.
        mid: `(rank, rank, kernel, kernel)` of a LoCon in Tucker form, whose `down` is `(rank, in, 1, 1)`:
            ΔW[o, i, k, l] = Σ up[o, m] mid[m, n, k, l] down[n, i].
    """

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None

    kind = "lora"

    @property
    def rank(self) -> int:
        """Number of rows of `down`."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What the product of the matrices is multiplied with."""
        return self.alpha / self.rank

    def factors(self) -> tuple[Tensor, Tensor]:
        """`(up * scale, down)`, flattened; of a Tucker form `mid` times `down` is the second."""
        up, down = self.up.float().flatten(1) * self.scale, self.down.float().flatten(1)
        if self.mid is not None:
            down = torch.einsum("mnkl,ni->mikl", self.mid.float(), down).flatten(1)
        return up, down

    def delta_weight(self, original: Tensor) -> Tensor:
        """The product of the factors."""
        up, down = self.factors()
        return (up.to(original.device) @ down.to(original.device)).reshape(original.shape)

    def needs_original(self) -> bool:
        """No."""
        return False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the product of the matrices is a change of a weight of this shape.

        A linear layer's matrices may be stored as 1 x 1 convolutions, and the other way round: other tools do both.
        """
        if len(shape) < 2 or self.up.shape[0] != shape[0] or self.down.shape[1] != shape[1]:
            return False
        kernel = (self.down if self.mid is None else self.mid).shape[2:]
        return (tuple(kernel) or (1, 1)) == (tuple(shape[2:]) or (1, 1))

    def tensors(self) -> dict[str, Tensor]:
        """`lora_down`, `lora_up`, `alpha`, and `lora_mid` of a Tucker form."""
        found = {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": torch.tensor(self.alpha)}
        return found if self.mid is None else found | {"lora_mid.weight": self.mid}


@dataclass(frozen=True)
class LohaModule:
    """A Hadamard product of two low-rank matrices (FedPara, https://arxiv.org/abs/2108.06098): (w1a w1b) ∘ (w2a w2b).

    Attributes:
        w1, w2: `(a, b)` with `a` `(out, rank)` and `b` `(rank, in * kernel)`; in Tucker form `(t, a, b)` with `t`
            `(rank, rank, kernel, kernel)`, `a` `(rank, out)` and `b` `(rank, in)`.
        alpha: the scale's numerator.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    alpha: float

    kind = "loha"

    @property
    def rank(self) -> int:
        """Rank of each of the two matrices; that of ΔW is up to its square."""
        return self.w1[-1].shape[0]

    def factors(self) -> None:
        """None: the rank of the product is not kept."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """The elementwise product of the two matrices, scaled."""
        first, second = (_product(factors, original.device) for factors in (self.w1, self.w2))
        return (first * second * (self.alpha / self.rank)).reshape(original.shape)

    def needs_original(self) -> bool:
        """No."""
        return False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether both products have this shape."""
        return all(_product_fits(factors, shape) for factors in (self.w1, self.w2))

    def tensors(self) -> dict[str, Tensor]:
        """`hada_w1_a` … `hada_t2`, `alpha`."""
        found = {"alpha": torch.tensor(self.alpha)}
        for number, factors in (("1", self.w1), ("2", self.w2)):
            found |= {f"hada_w{number}_a": factors[-2], f"hada_w{number}_b": factors[-1]}
            if len(factors) == 3:
                found[f"hada_t{number}"] = factors[0]
        return found


@dataclass(frozen=True)
class LokrModule:
    """A Kronecker product (https://arxiv.org/abs/2212.10650): kron(w1, w2), each whole or itself a product.

    Attributes:
        w1: `(whole,)` or `(a, b)`, a matrix `(out1, in1)`.
        w2: `(whole,)`, `(a, b)` or, in Tucker form, `(t, a, b)`: `(out2, in2, kernel, kernel)`.
        alpha: the scale's numerator; without effect where both are whole, as in every program that reads such files.
    """

    w1: tuple[Tensor, ...]
    w2: tuple[Tensor, ...]
    alpha: float

    kind = "lokr"

    @property
    def rank(self) -> int | None:
        """Rank of the product that makes `w2`, else of the one that makes `w1`; None where both are whole."""
        return next((factors[-1].shape[0] for factors in (self.w2, self.w1) if len(factors) > 1), None)

    @property
    def scale(self) -> float:
        """What the Kronecker product is multiplied with."""
        return 1.0 if self.rank is None else self.alpha / self.rank

    def factors(self) -> None:
        """None: a Kronecker product is not of low rank."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """The Kronecker product, scaled. A kernel stays within the columns of `w2`, so flat matrices do."""
        first, second = (_product(factors, original.device) for factors in (self.w1, self.w2))
        return (torch.kron(first, second) * self.scale).reshape(original.shape)

    def needs_original(self) -> bool:
        """No."""
        return False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the Kronecker product has as many rows and columns."""
        (rows1, columns1), (rows2, columns2) = (_product_size(factors) for factors in (self.w1, self.w2))
        return len(shape) > 1 and (rows1 * rows2, columns1 * columns2) == flat_size(shape)

    def tensors(self) -> dict[str, Tensor]:
        """`lokr_w1` or `lokr_w1_a`, `lokr_w1_b`; the same of `lokr_w2`, with `lokr_t2` in Tucker form; `alpha`."""
        # Other programs write a stand-in of the alpha where both are whole, which does not fit into fp16.
        found = {"alpha": torch.tensor(1.0 if self.rank is None else self.alpha)}
        for number, factors in (("1", self.w1), ("2", self.w2)):
            if len(factors) == 1:
                found[f"lokr_w{number}"] = factors[0]
            else:
                found |= {f"lokr_w{number}_a": factors[-2], f"lokr_w{number}_b": factors[-1]}
            if len(factors) == 3:
                found[f"lokr_t{number}"] = factors[0]
        return found


_KIND_OF_DIFFERENCE = {"diff": "full", "w_norm": "norm", "diff_b": "bias", "b_norm": "bias"}


@dataclass(frozen=True)
class DifferenceModule:
    """A change that is stored whole: of a layer's weight ("full"), of a norm's weight ("norm"), of a bias ("bias").

    Attributes:
        difference: what is added, of the tensor's own shape.
        part: what it is called in a kohya file: "diff", "w_norm", "diff_b" or "b_norm".
    """

    difference: Tensor
    part: str = "diff"

    rank = None

    @property
    def kind(self) -> str:
        """ "full", "norm" or "bias", as the part says."""
        return _KIND_OF_DIFFERENCE[self.part]

    def factors(self) -> None:
        """None: it is no product."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """The difference."""
        return self.difference.to(original.device, torch.float32).reshape(original.shape)

    def needs_original(self) -> bool:
        """No."""
        return False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the shapes are equal; a 1 x 1 kernel may be there or not."""
        return _without_kernel(self.difference.shape) == _without_kernel(shape)

    def tensors(self) -> dict[str, Tensor]:
        """The difference under its part's name."""
        return {self.part: self.difference}


def _without_kernel(shape: Sequence[int]) -> tuple[int, ...]:
    sides = tuple(shape)
    return sides[:2] if sides[2:] == (1, 1) else sides


def _product(factors: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """The matrix of `(whole,)`, `(a, b)` or `(t, a, b)`, flat, float32."""
    parts = [factor.to(device, torch.float32) for factor in factors]
    if len(parts) == 1:
        return parts[0].flatten(1)
    if len(parts) == 2:
        return parts[0].flatten(1) @ parts[1].flatten(1)
    return torch.einsum("mnkl,mo,ni->oikl", *parts).flatten(1)


def _product_size(factors: tuple[Tensor, ...]) -> tuple[int, int]:
    """Rows and columns of `_product`, without computing it."""
    if len(factors) == 1:
        return flat_size(factors[0].shape)
    if len(factors) == 2:
        return factors[0].shape[0], flat_size(factors[1].shape)[1]
    tucker, rows, columns = factors
    return rows.shape[1], columns.shape[1] * tucker.shape[2] * tucker.shape[3]


def _product_fits(factors: tuple[Tensor, ...], shape: Sequence[int]) -> bool:
    return len(shape) > 1 and _product_size(factors) == flat_size(shape)
