"""Writes a checkpoint of a published architecture with random weights: its size and speed without its download."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))


def make_full_model(family: str, path: Path) -> Path:
    """Write `path`, a single file of the family's full key set in fp16, a tensor at a time (sd1: 2.1 GB).

    Norms start at 1 and biases at 0, all else is random at the spread that keeps activations as large as they are, so that
    no numbers occur that a processor computes slowly.
    """
    from tests.ldm_layout import full_checkpoint

    tensors = full_checkpoint(family)
    header, position = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    normal = np.random.default_rng(0).standard_normal((1 << 20) + 17).astype(np.float32)
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            count = tensor.numel()
            if tensor.ndim < 2:
                handle.write(np.full(count, float(name.endswith("weight")), np.float16).tobytes())
                continue
            pattern = (normal * tensor[0].numel() ** -0.5).astype(np.float16).tobytes()
            for begin in range(0, 2 * count, len(pattern)):
                handle.write(pattern[: min(len(pattern), 2 * count - begin)])
    return path
