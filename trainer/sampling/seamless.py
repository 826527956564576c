"""Pictures whose edges fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from trainer.models.components import Components


@contextmanager
def seamless(components: Components) -> Iterator[None]:
    """Let every convolution of UNet and VAE go on at the opposite edge, as on a torus, for a while."""
    convolutions = [
        module
        for part in (components.unet, components.vae)
        for module in part.modules()
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and any(module.padding)
    ]
    for module in convolutions:
        module.padding_mode = "circular"
    try:
        yield
    finally:
        for module in convolutions:
            module.padding_mode = "zeros"
