"""The exact sum of changes of one layer's weight: their ranks side by side, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.lora_files.modules import AdapterModule, DifferenceModule, LoraModule
from trainer.lora_tools.changes import to_module
from trainer.lora_tools.lowrank import LowRank, concatenate
from trainer.lora_tools.products import exact_product


def sum_modules(parts: Sequence[tuple[AdapterModule, float]], shape: Sequence[int]) -> AdapterModule:
    """One module that changes a weight as all parts together, each times its factor; float32, on the CPU.

    Args:
        parts: of low rank, as `exact_product` sees it, and at least one; or differences of a vector (a bias, a norm).
        shape: of the weight, `(out, in)`, `(out, in, kernel, kernel)`, or the vector's.

    Raises: ValueError: a part is not of low rank.
    """
    vectors = [(module, weight) for module, weight in parts if isinstance(module, DifferenceModule)]
    if vectors:
        total = sum(module.difference.float() * weight for module, weight in vectors)
        return DifferenceModule(torch.as_tensor(total), vectors[0][0].part)
    products: list[tuple[LowRank, float]] = []
    for module, weight in parts:
        product = exact_product(module)
        if product is None:
            raise ValueError(f"{module.kind} is not of low rank, and has no exact sum")
        products.append((LowRank(product.up.cpu(), product.down.cpu()), weight))
    matrix = concatenate(products)
    return to_module(matrix, tuple(shape), float(matrix.rank), torch.float32)


def layer_shape(module: AdapterModule) -> tuple[int, ...] | None:
    """The shape of the weight that a plain LoRA changes; None for other kinds."""
    if not isinstance(module, LoraModule):
        return None
    return module.up.shape[0], *module.down.shape[1:]
