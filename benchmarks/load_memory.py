"""How much memory loading a single file takes: the full architectures with random fp16 weights, made on the spot.

    python benchmarks/load_memory.py sd1        (about 2 GB of disk, 5 GB of memory for fp32)
    python benchmarks/load_memory.py sdxl --precision bf16

The file is made by one process and loaded by another, whose peak of resident memory above its start is compared with
the bytes of the loaded weights. The file is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))


def make(family: str, path: Path) -> None:
    """Write a checkpoint of the family's full key set with random fp16 weights, a tensor at a time."""
    import struct

    import numpy as np

    from tests.ldm_layout import full_checkpoint

    header, position = {}, 0
    for name, tensor in full_checkpoint(family).items():
        size = tensor.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float16).tobytes()
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for begin in range(0, position, len(random)):
            handle.write(random[: min(len(random), position - begin)])


def load(path: Path, precision: str) -> dict[str, float]:
    """Load it in this process, and measure."""
    import resource

    import torch

    from trainer.models.components import load_components
    from trainer.models.devices import pick_dtype
    from trainer.paths import DataFolder

    device = torch.device("cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.monotonic()
    parts = load_components(str(path), DataFolder(path.parent), device, pick_dtype(precision, device))
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(t.nbytes for part in parts.parts for t in getattr(parts, part).state_dict().values())
    return {
        "weights_gb": weights / 1e9,
        "peak_gb": (peak - before) / 1e9,
        "ratio": (peak - before) / weights,
        "seconds": seconds,
    }


def main() -> None:
    """Make the file, load it in a process of its own, print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["sd1", "sd2", "sdxl"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(options.load, options.precision)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{options.family}.safetensors"
        make(options.family, path)
        size = path.stat().st_size / 1e9
        command = [sys.executable, __file__, options.family, "--precision", options.precision, "--load", str(path)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(
        f"{options.family} {options.precision}: file {size:.2f} GB, weights {found['weights_gb']:.2f} GB, "
        f"peak {found['peak_gb']:.2f} GB, ratio {found['ratio']:.2f}, {found['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
