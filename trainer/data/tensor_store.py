"""A cache of tensors on the disk: small safetensors files, named by what they follow from, checked when read."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.files import write_bytes

log = logging.getLogger(__name__)


def content_key(**facts: object) -> str:
    """A name for what follows from `facts` (JSON-able) and nothing else."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class TensorStore:
    """Tensors by key. Whatever is missing, cut off or altered counts as not there, so that it is computed again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        """Where the tensors of `key` lie. Sub-folders keep the folders small."""
        return self._folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key`, or None."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as handle:
                checksum = (handle.metadata() or {}).get("checksum")
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            log.warning("The cache file %s cannot be read (%s); it is made anew", path, error)
            return None
        if checksum != _checksum(tensors):
            log.warning("The cache file %s is damaged; it is made anew", path)
            return None
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors. Raises ResourceError when the disk is full."""
        plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        write_bytes(self.path(key), save(plain, {"checksum": _checksum(plain)}), "the cache")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)}:".encode())
        digest.update(save({"": tensors[name]}))
    return digest.hexdigest()
