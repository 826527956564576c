"""Random numbers as functions of where they are used, so that nothing random has to be saved to resume exactly."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(*parts: int | str) -> int:
    """A seed for the use that `parts` name, such as ("noise", seed, step, micro_batch); equal on every machine.

    Hashing keeps streams apart that addition would let collide (seed 1 step 2 against seed 2 step 1).
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A CPU generator of that seed: draws are made on the CPU, so that a GPU run sees the same numbers."""
    return torch.Generator().manual_seed(stream_seed(*parts))
