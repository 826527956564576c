"""Weights of the loss over the area of a picture: pure functions of tensors."""

from __future__ import annotations

from torch import Tensor


def area_weights(masks: Tensor, floor: float, *, normalised: bool) -> Tensor:
    """The weight of each latent's error: the mask, but never below the floor.

    Args:
        masks: `(batch, 1, h, w)`, float32, from 0 (background) to 1 (subject).
        floor: the least weight, 0 to 1; OneTrainer's "unmasked weight".
        normalised: divide by the mean weight of each picture, so that a small subject counts as much as a large one.

    Returns: `(batch, 1, h, w)`. Zeros where a mask is empty and the floor is 0.
    """
    weights = masks.clamp(min=floor)
    if not normalised:
        return weights
    # An empty mask has no mean to divide by; any positive number leaves its zeros zeros.
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
