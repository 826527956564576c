"""Products that are exactly the change of LoHa and LoKr modules, where those are of low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.lora_files.modules import AdapterModule, LohaModule, LokrModule
from trainer.lora_tools.lowrank import LowRank, numerical_rank


def exact_product(module: AdapterModule) -> LowRank | None:
    """A module's change as a product, or None where it has no rank below its sides or depends on the weight.

    LoHa of rank r has at most rank r² (its rows are products of rows: Hyeon-Woo et al. 2021,
    https://arxiv.org/abs/2108.06098, proposition 1), a Kronecker product the product of its factors' ranks.
    """
    factors = module.factors()
    if factors is not None:
        return LowRank(*factors)
    if isinstance(module, LohaModule):
        product = _hadamard(module)
    elif isinstance(module, LokrModule):
        product = _kronecker(module)
    else:
        return None
    return product if product.rank < min(product.shape) else None


def flat_module_shape(module: LohaModule | LokrModule) -> tuple[int, int]:
    """`(out, in · kernel)` of the change."""
    if isinstance(module, LohaModule):
        up, down = _factors(module.w1)
        return up.shape[0], down.shape[1]
    (up1, down1), (up2, down2) = _factors(module.w1), _factors(module.w2)
    return up1.shape[0] * up2.shape[0], down1.shape[1] * down2.shape[1]


def _hadamard(module: LohaModule) -> LowRank:
    (up1, down1), (up2, down2) = _factors(module.w1), _factors(module.w2)
    # Row by row (column by column) all products of the two factors' entries.
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1) * (module.alpha / module.rank)
    down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
    return LowRank(up, down)


def _kronecker(module: LokrModule) -> LowRank:
    (up1, down1), (up2, down2) = _slim(*_factors(module.w1)), _slim(*_factors(module.w2))
    # The SVD's factors lie column by column, which kron does not take.
    up = torch.kron(up1.contiguous(), up2.contiguous()) * module.scale
    return LowRank(up, torch.kron(down1.contiguous(), down2.contiguous()))


def _factors(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A factor of LoHa or LoKr, itself whole, a product, or in Tucker form, as up and down."""
    tensors = [part.float() for part in parts]
    if len(tensors) == 1:
        whole = tensors[0].flatten(1)
        return torch.eye(len(whole)), whole
    if len(tensors) == 2:
        return tensors[0].flatten(1), tensors[1].flatten(1)
    tucker, rows, columns = tensors
    return rows.T, torch.einsum("mnkl,ni->mikl", tucker, columns).flatten(1)


def _slim(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with no more columns than its rank."""
    if up.shape[1] < min(up.shape[0], down.shape[1]):
        return up, down
    left, values, right = torch.linalg.svd(up @ down, full_matrices=False)
    rank = max(1, numerical_rank(values, (up.shape[0], down.shape[1])))
    return left[:, :rank] * values[:rank], right[:rank]
