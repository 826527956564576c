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
