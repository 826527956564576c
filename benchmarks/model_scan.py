"""How long it takes to look through thousands of model files: the first time, after a restart, and again.

    python benchmarks/model_scan.py --files 3000

Makes files with the full key sets of Stable Diffusion 1.5 and XL (headers only: their data is a hole in the file) and as
many LoRA files between them. Compared with walking the same folder, and with only reading the headers as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))


def headers() -> dict[str, bytes]:
    """The beginning of a file of each kind."""
    from tests.ldm_layout import full_checkpoint
    from trainer.lora_files.names import kohya_name
    from trainer.models import single_file
    from trainer.models.unet_family import unet_targets

    shapes = {family: {k: tuple(v.shape) for k, v in full_checkpoint(family).items()} for family in ("sd1", "sdxl")}
    layers = [
        kohya_name(f"unet.{path}")
        for path in unet_targets(single_file._empty_unet(single_file.CONFIGS / "sd1"), "attention")
    ]
    keys = [f"{layer}.{part}" for layer in layers for part in ("lora_down.weight", "lora_up.weight")]
    return {kind: _header(found) for kind, found in (shapes | {"lora": dict.fromkeys(keys, (16, 320))}).items()}


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, position = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<Q", position)


def make(folder: Path, count: int) -> None:
    """Fill a folder."""
    kinds = headers()
    for index in range(count):
        name = ("sd1", "lora", "sdxl", "lora")[index % 4]
        head, size = kinds[name][:-8], struct.unpack("<Q", kinds[name][-8:])[0]
        path = folder / f"group {index % 20}" / f"{name} {index}.safetensors"
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(head)
            handle.truncate(len(head) + size)


def _read_json(path: Path) -> object:
    with open(path, "rb") as handle:
        return json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))


def timed(what: str, function: Callable[[], object]) -> None:
    """Print how long it takes."""
    started = time.perf_counter()
    function()
    print(f"{what}: {time.perf_counter() - started:.2f} s")


def main() -> None:
    """Make the files, and time the scans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000)
    options = parser.parse_args()
    from trainer.base_models import scan
    from trainer.paths import DataFolder

    with tempfile.TemporaryDirectory() as root:
        folder, data = Path(root) / "models", DataFolder(Path(root) / "data")
        folder.mkdir()
        make(folder, options.files)
        scan.add_model_folder(data, folder)
        timed("walk alone", lambda: [os.stat(Path(at, file)) for at, _, files in os.walk(folder) for file in files])
        timed("headers as JSON", lambda: [_read_json(file) for file in folder.rglob("*.safetensors")])
        timed("first scan", lambda: scan.scan_models(data))
        scan._memory.clear()
        timed("after a restart", lambda: scan.scan_models(data))
        timed("again", lambda: scan.scan_models(data))


if __name__ == "__main__":
    main()
