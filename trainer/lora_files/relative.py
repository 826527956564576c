"""Kinds of adapters whose change depends on the weight that they are applied to: DoRA, OFT, BOFT, (IA)³.

At another strength than 1 each is taken straight on the way from the original: W + strength * (W' - W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.lora_files.modules import AdapterModule, flat_size


@dataclass(frozen=True)
class DoraModule:
    """DoRA (https://arxiv.org/abs/2402.09353): W' = magnitude * V / ‖V‖ with V = W + ΔW of `inner`.

    Two readings of the paper are about, which are different models: one magnitude for each output channel (peft,
    newer LyCORIS) or for each input channel (older LyCORIS, OneTrainer). The norm runs over everything else.

    Attributes:
        inner: the change of the direction, any kind that does not itself depend on the weight.
        magnitude: `(out, 1)` or `(1, in)`, with a 1 for each side of a kernel.
        axis: 0 for output channels, 1 for input channels.
    """

    inner: AdapterModule
    magnitude: Tensor
    axis: int

    kind = "dora"

    @property
    def rank(self) -> int | None:
        """The inner change's."""
        return self.inner.rank

    def factors(self) -> None:
        """None: the norm depends on the weight."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """W' - W."""
        weight = original.float()
        changed = weight + self.inner.delta_weight(original)
        norm = changed.transpose(0, self.axis).flatten(1).norm(dim=1)
        # As LyCORIS: a channel that is all zero stays zero.
        scale = self.magnitude.to(original.device, torch.float32).flatten() / (norm + torch.finfo(torch.float32).eps)
        sides = [1] * weight.ndim
        sides[self.axis] = -1
        return changed * scale.view(sides) - weight

    def needs_original(self) -> bool:
        """Yes."""
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the inner change fits, and there is a magnitude for each channel."""
        return self.inner.fits(shape) and self.magnitude.numel() == shape[self.axis]

    def tensors(self) -> dict[str, Tensor]:
        """The inner change's, and `dora_scale`."""
        return self.inner.tensors() | {"dora_scale": self.magnitude}


@dataclass(frozen=True)
class Ia3Module:
    """(IA)³ (https://arxiv.org/abs/2205.05638): each input or output channel is scaled by 1 + its number.

    Attributes:
        weight: one number a channel; `(channels,)`, of a convolution `(1, channels, 1, 1)`.
        on_input: whether they are input channels.
    """

    weight: Tensor
    on_input: bool

    kind = "ia3"
    rank = None

    def factors(self) -> None:
        """None: it scales the weight."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """W times the numbers of its channels."""
        sides = [1] * original.ndim
        sides[1 if self.on_input else 0] = -1
        return original.float() * self.weight.to(original.device, torch.float32).flatten().view(sides)

    def needs_original(self) -> bool:
        """Yes."""
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether there is a number for each channel."""
        return len(shape) > 1 and self.weight.numel() == shape[1 if self.on_input else 0]

    def tensors(self) -> dict[str, Tensor]:
        """`weight` and `on_input`."""
        return {"weight": self.weight, "on_input": torch.tensor(float(self.on_input))}


@dataclass(frozen=True)
class OftModule:
    """Orthogonal fine-tuning (https://arxiv.org/abs/2306.07280) of the output channels, as LyCORIS and kohya store it.

    Rotations R = (I + Q)(I - Q)⁻¹ with Q = blocks - blocksᵀ. With 3-D `blocks` ("oft") each rotates its own run of
    channels; with 4-D ("boft", https://arxiv.org/abs/2311.06243) each of several stages does, between which channels
    are shuffled as in a fast Fourier transform.

    Attributes:
        blocks: `(blocks, size, size)` or `(stages, blocks, size, size)`.
        constraint: the norm of all Q together is at most this times the number of output channels; 0 is no limit.
        rescale: one factor for each output channel, applied last; or None.
    """

    blocks: Tensor
    constraint: float = 0.0
    rescale: Tensor | None = None

    rank = None

    @property
    def kind(self) -> str:
        """ "oft" or "boft"."""
        return "oft" if self.blocks.ndim == 3 else "boft"

    def factors(self) -> None:
        """None: it rotates the weight."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """The rotated weight minus the weight."""
        weight = original.float()
        rotations = self._rotations(original.device, weight.shape[0])
        rotated = _butterfly(rotations, weight) if self.kind == "boft" else _rotate_rows(rotations, weight)
        if self.rescale is not None:
            factors = self.rescale.to(original.device, torch.float32).flatten()
            rotated = rotated * factors.view(-1, *(1 for _ in weight.shape[1:]))
        return rotated - weight

    def _rotations(self, device: torch.device, out: int) -> Tensor:
        blocks = self.blocks.to(device, torch.float32)
        skew = blocks - blocks.transpose(-1, -2)
        limit, norm = self.constraint * out, skew.norm() + 1e-8
        if 0 < limit < norm:
            skew = skew * (limit / norm)
        identity = torch.eye(skew.shape[-1], device=device)
        return (identity + skew) @ torch.linalg.inv(identity - skew)

    def needs_original(self) -> bool:
        """Yes."""
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the blocks cover the output channels exactly."""
        covered = self.blocks.shape[-3] * self.blocks.shape[-1]
        # The last stage mixes channels that lie 2 ** (stages - 1) half blocks apart.
        widest = 2 ** self.blocks.shape[0] * (self.blocks.shape[-1] // 2) if self.kind == "boft" else 1
        rescales = self.rescale is None or self.rescale.numel() == shape[0]
        return len(shape) > 1 and covered == shape[0] and rescales and widest > 0 and covered % widest == 0

    def tensors(self) -> dict[str, Tensor]:
        """`oft_blocks`, `alpha` (the constraint), and `rescale` if there is one."""
        found = {"oft_blocks": self.blocks, "alpha": torch.tensor(self.constraint)}
        return found if self.rescale is None else found | {"rescale": self.rescale}


def _rotate_rows(rotations: Tensor, weight: Tensor) -> Tensor:
    count, size, _ = rotations.shape
    rows = weight.reshape(count, size, -1)
    return torch.einsum("knm,knc->kmc", rotations, rows).reshape(weight.shape)


def _butterfly(rotations: Tensor, weight: Tensor) -> Tensor:
    """LyCORIS' stages: rows are dealt into pairs of half blocks that lie 2 ** stage half blocks apart, and back."""
    stages, _, size, _ = rotations.shape
    rows = weight.flatten(1)
    for stage in range(stages):
        distance = 2**stage * (size // 2)
        dealt = rows.unflatten(0, (-1, 2, distance)).transpose(1, 2).flatten(0, 2)
        turned = torch.einsum("bij,bjc->bic", rotations[stage], dealt.unflatten(0, (-1, size))).flatten(0, 1)
        rows = turned.unflatten(0, (-1, distance, 2)).transpose(1, 2).flatten(0, 2)
    return rows.reshape(weight.shape)


@dataclass(frozen=True)
class InputOftModule:
    """Orthogonal fine-tuning of the input channels, as peft and OneTrainer store it: W' = W Rᵀ.

    R is block-diagonal; each block is the Cayley transform of a skew-symmetric Q, or its Neumann series.

    Attributes:
        vectors: the upper triangles of the Q, `(blocks, size * (size - 1) / 2)`; one block may serve for all.
        neumann_terms: terms of the series; peft's default is 5. 0 is the exact transform.
    """

    vectors: Tensor
    neumann_terms: int = 5

    kind = "oft"
    rank = None

    @property
    def size(self) -> int:
        """Side of a block: n(n-1)/2 = the length of a vector."""
        return round((1 + (1 + 8 * self.vectors.shape[1]) ** 0.5) / 2)

    def factors(self) -> None:
        """None: it rotates the weight."""
        return

    def delta_weight(self, original: Tensor) -> Tensor:
        """The rotated weight minus the weight."""
        weight = original.float()
        rotations = self._rotations(original.device)
        rows = weight.flatten(1)
        grouped = rows.view(rows.shape[0], -1, self.size)
        rotated = torch.einsum("ogj,gij->ogi", grouped, rotations.expand(grouped.shape[1], -1, -1))
        return rotated.reshape(weight.shape) - weight

    def _rotations(self, device: torch.device) -> Tensor:
        vectors, size = self.vectors.to(device, torch.float32), self.size
        skew = torch.zeros(vectors.shape[0], size, size, device=device)
        above = torch.triu_indices(size, size, 1, device=device)
        skew[:, above[0], above[1]] = vectors
        skew = skew - skew.transpose(1, 2)
        identity = torch.eye(size, device=device)
        if not self.neumann_terms:
            return torch.linalg.solve(identity + skew, identity - skew, left=False)
        # (I + Q)(I - Q)⁻¹ = I + 2Q + 2Q² + …, cut off with half the last term.
        total, power = identity.expand_as(skew).clone(), skew
        for term in range(1, self.neumann_terms):
            is_last = term == self.neumann_terms - 1 and term > 1
            total = total + (power if is_last else 2 * power)
            power = power @ skew
        return total

    def needs_original(self) -> bool:
        """Yes."""
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the blocks cover the columns exactly."""
        if len(shape) < 2 or self.size * (self.size - 1) != 2 * self.vectors.shape[1]:
            return False
        count, rest = divmod(flat_size(shape)[1], self.size)
        return rest == 0 and self.vectors.shape[0] in (1, count)

    def tensors(self) -> dict[str, Tensor]:
        """`oft_R.weight`."""
        return {"oft_R.weight": self.vectors}
