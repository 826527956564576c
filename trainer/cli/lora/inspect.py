"""`inkwash lora inspect`: what a file is and says of itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainer.cli.output import print_json
from trainer.library import resolve_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.inspect import describe_lora
from trainer.paths import data_folder

SUMMARY = "family, kinds, ranks, trigger words, base model, hashes, metadata; of an embedding its size"
EXAMPLES = """  inkwash lora inspect my-style.safetensors
  inkwash lora inspect ink-wash --json"""

_EMBEDDING_KEYS = ("emb_params", "emp_params", "clip_l", "clip_g", "*", "string_to_param.*")
_MAX_PARTS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tool's arguments."""
    parser.add_argument("file", metavar="FILE", help="a .safetensors file, or the name of one in the library")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    path = resolve_lora(data_folder(arguments.data_dir), arguments.file)
    facts = _describe_embedding(path) if _is_embedding(path) else describe_lora(path)
    if arguments.json:
        print_json(facts)
        return 0
    for key, value in facts.items():
        if key == "metadata":
            print(f"metadata: {len(value)} entries (all with --json)")
        else:
            print(f"{key.replace('_', ' ')}: {value}")
    return 0


def _is_embedding(path: Path) -> bool:
    """Whether the names in the header are those of an embedding; pickles are A1111's embeddings."""
    if path.suffix.lower() in (".pt", ".bin"):
        return True
    _, header = read_header(path)
    return 0 < len(header) <= _MAX_PARTS and all(key.removesuffix("_out") in _EMBEDDING_KEYS for key in header)


def _describe_embedding(path: Path) -> dict[str, Any]:
    # torch takes seconds to load: only where it is needed.
    from trainer.lora_files.embeddings import read_embedding

    embedding = read_embedding(path)
    return {
        "file": str(path),
        "title": "".join(char if char.isprintable() else " " for char in embedding.name),
        "kinds": ["embedding"],
        "vectors": {encoder: list(vectors.shape) for encoder, vectors in embedding.vectors.items()},
        "size_bytes": path.stat().st_size,
    }
