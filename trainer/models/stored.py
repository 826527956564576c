"""Tensors of a file that are read only when they are needed, one at a time."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.base_models.checkpoints import read_model_entries
from trainer.errors import ModelFileError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class StoredTensor:
    """A tensor in a file, with what is to be done to it after reading.

    It has what diffusers' conversion of original checkpoints does with tensors: shapes, slices, transposing. So that
    code runs on names and shapes alone, and the bytes are read once, straight into their last place.
    """

    def __init__(
        self, read: Callable[[], Tensor], meta: Tensor, changes: tuple[Callable[[Tensor], Tensor], ...] = ()
    ) -> None:
        self._read, self._meta, self._changes = read, meta, changes

    @property
    def shape(self) -> torch.Size:
        """Its shape after the changes."""
        return self._meta.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self._meta.ndim

    @property
    def T(self) -> StoredTensor:
        """Transposed."""
        return self._then(lambda tensor: tensor.T)

    def __getitem__(self, index: Any) -> StoredTensor:
        return self._then(lambda tensor: tensor[index])

    def contiguous(self) -> StoredTensor:
        """The same: `load` always gives contiguous tensors."""
        return self

    def clone(self) -> StoredTensor:
        """The same: every `load` reads anew."""
        return self

    def detach(self) -> StoredTensor:
        """The same: nothing here has a graph."""
        return self

    def _then(self, change: Callable[[Tensor], Tensor]) -> StoredTensor:
        return StoredTensor(self._read, change(self._meta), (*self._changes, change))

    def load(self, dtype: torch.dtype) -> Tensor:
        """Read it, in this number format and in memory of its own."""
        tensor = self._read()
        for change in self._changes:
            tensor = change(tensor)
        return tensor.to(dtype).contiguous()


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a `.safetensors` file, or of a `.ckpt` that holds nothing but tensors and plain values.

    Raises: ModelFileError: the file is damaged, or would have to run code to be read.
    """
    return _open_pickle(path) if path.suffix.lower() == ".ckpt" else _open_safetensors(path)


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    _, entries = read_model_entries(path)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            continue
        dtype = _DTYPES[entry.dtype]

        def read(
            begin: int = entry.begin, size: int = entry.end - entry.begin, dtype: torch.dtype = dtype,
            shape: tuple[int, ...] = entry.shape,
        ) -> Tensor:  # fmt: skip
            # Read, not mapped: mapped weights would count twice while they are converted, and would vanish from under
            # the model when the file is replaced.
            data = torch.empty(size, dtype=torch.uint8)
            with open(path, "rb") as handle:
                handle.seek(begin)
                if handle.readinto(memoryview(data.numpy().data)) != size:
                    raise OSError("the file was changed while it was read")
            return data.view(dtype).reshape(shape)

        tensors[name] = StoredTensor(read, torch.empty(entry.shape, dtype=dtype, device="meta"))
    return tensors


def load_pickle(path: Path, *, mmap: bool, otherwise: str = "", broken: str = "Get the model as .safetensors.") -> Any:
    """What a pickled file holds, read without running any code of it.

    Args:
        mmap: do not read weights before they are used; files of before 2020 cannot be read so.
        otherwise: what else helps where the file wants to run code, after "Get the model as .safetensors."
        broken: what helps where it cannot be read.

    Raises: ModelFileError: it wants to run code, or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"This {path.suffix} wants to run code while it is read, which a model has no need of.",
            where=str(path),
            fix=f"Get the model as .safetensors.{otherwise}",
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ModelFileError(f"The file cannot be read: {error}", where=str(path), fix=broken) from error


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    content = load_pickle(
        path, mmap=True, otherwise=" If you trust the file, convert it with the program that it came from."
    )
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {
        name: StoredTensor(lambda tensor=tensor: tensor.clone(), tensor.to("meta"))
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }
