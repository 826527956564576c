"""Checkpoints: folders that are whole or not there, checked when read, from which a run goes on as if nothing had happened.

checkpoints/step-00000100/   adapter.safetensors    the trained weights, float32
                             optimizer.safetensors  its state, a tensor a weight and name
                             average.safetensors    the average of the weights, float32, where one is kept
                             state.json             step, times, validation, and what must not change
                             manifest.json          sizes and SHA-256 of the others; written last
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer.errors import RunError
from trainer.files import TEMPORARY_PREFIX, disk_errors, replace, require_free, sweep_partial, sync_file, sync_folder

log = logging.getLogger(__name__)
FORMAT_VERSION = 1
MARGIN_BYTES = 16 * 2**20
"""What must stay free beside a checkpoint: events and the log must still be written, to say why the run ended."""
_AVERAGE = "average.safetensors"
_FILES = ("adapter.safetensors", "optimizer.safetensors", "state.json")
_GROUP = "group"
_NUMBERS = {int: torch.int64, float: torch.float64}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. `optimizer` is that of `pack_optimizer`, `average` is empty where none is kept; `state` is JSON-able."""

    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)


class CheckpointStore:
    """The checkpoints of a run; the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, read it back, and only then let the oldest go. Returns its folder.

        Raises: ResourceError: the disk is full or not writable; what was saved before is untouched.
        """
        final = self._folder / f"step-{step:08d}"
        if final.exists() and _fault(final) is None:
            return final
        files = {
            "adapter.safetensors": save(_plain(checkpoint.adapter)),
            "optimizer.safetensors": save(_plain(checkpoint.optimizer)),
            "state.json": json.dumps(checkpoint.state, ensure_ascii=False, indent=2).encode("utf-8"),
        }
        if checkpoint.average:
            files[_AVERAGE] = save(_plain(checkpoint.average))
        require_free(self._folder, sum(map(len, files.values())) + MARGIN_BYTES, "a checkpoint")
        with disk_errors(self._folder, "the checkpoint"):
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep_partial(self._folder)
            partial = self._folder / f"{TEMPORARY_PREFIX}{final.name}"
            try:
                _write(partial, files)
                fault = _fault(partial)
                if fault:
                    raise RunError(f"The checkpoint was not written correctly ({fault}).", where=str(self._folder))
                if final.exists():
                    self._remove(final)
                replace(partial, final)
                sync_folder(self._folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        self._rotate(step)
        return final

    def _rotate(self, step: int) -> None:
        """Let old checkpoints go, the one of `step` being whole; later ones are damaged, or of a way that was given up."""
        try:
            self.drop_after(step)
            for old in self._folders()[self._keep :]:
                self._remove(old)
        except OSError:
            # One too many costs space; the run need not end for it (a program that has a file open, on Windows).
            log.warning("An old checkpoint could not be removed", exc_info=True)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps, the last first."""
        for folder in self._folders():
            if _step(folder) > step:
                self._remove(folder)

    def newest(self, before: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest valid checkpoint, of a step below `before` if that is given, or None where there is none; and a
        sentence on each newer one that is damaged.

        Raises: RunError: the newest was written by a newer version of this program.
        """
        warnings: list[str] = []
        for folder in self._folders():
            if before is not None and _step(folder) >= before:
                continue
            fault = _fault(folder)
            if fault is None:
                return _read(folder), warnings
            log.warning("The checkpoint %s is damaged: %s", folder, fault)
            warnings.append(f"The checkpoint {folder.name} is damaged ({fault}) and was passed over.")
        return None, warnings

    def _folders(self) -> list[Path]:
        return sorted(self._folder.glob("step-" + "[0-9]" * 8), key=lambda folder: folder.name, reverse=True)

    def _remove(self, folder: Path) -> None:
        # Renamed first: a deletion that is cut short must not leave half a checkpoint behind.
        doomed = folder.with_name(f"{TEMPORARY_PREFIX}old-{folder.name}")
        replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    manifest = {"format_version": FORMAT_VERSION, "torch": torch.__version__, "files": entries}
    for name, data in {**files, "manifest.json": json.dumps(manifest, indent=2).encode("utf-8")}.items():
        (folder / name).write_bytes(data)
        sync_file(folder / name)
    sync_folder(folder)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format_version"] > FORMAT_VERSION:
            raise RunError(
                f"The checkpoint has format version {manifest['format_version']}; this Inkwash knows up to {FORMAT_VERSION}.",
                where=str(folder),
                fix="Update Inkwash.",
            )
        entries = manifest["files"]
        for name in dict.fromkeys((*_FILES, *entries)):
            data = (folder / name).read_bytes()
            if len(data) != entries[name]["bytes"]:
                return f"{name} has {len(data):,} bytes instead of {entries[name]['bytes']:,}"
            if hashlib.sha256(data).hexdigest() != entries[name]["sha256"]:
                return f"{name} was altered"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error}"
    return None


def _read(folder: Path) -> Checkpoint:
    average = folder / _AVERAGE
    try:
        return Checkpoint(
            adapter=load((folder / "adapter.safetensors").read_bytes()),
            optimizer=load((folder / "optimizer.safetensors").read_bytes()),
            state=json.loads((folder / "state.json").read_text(encoding="utf-8")),
            average=load(average.read_bytes()) if average.exists() else {},
        )
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError("The checkpoint cannot be read.", where=str(folder), fix="Start a new run.") from error


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: `<weight>.<name>` and `group.<group>.<name>`, numbers as `<name>:int`, `:float`.

    Its settings are not kept: they follow from the configuration. Some optimizers also count and estimate in their
    groups (Prodigy and D-Adaptation their learning rate); that is what they do not take as an argument.
    """
    state = optimizer.state_dict()
    settings = inspect.signature(type(optimizer)).parameters
    found = [(str(index), name, value) for index, values in state["state"].items() for name, value in _flat(values)]
    found += [
        (f"{_GROUP}.{index}", name, value)
        for index, group in enumerate(state["param_groups"])
        for name, value in group.items()
        if name not in settings and (type(value) in _NUMBERS or isinstance(value, Tensor))
    ]
    packed: dict[str, Tensor] = {}
    for where, name, value in found:
        if isinstance(value, Tensor):
            # Cloned, for tensors that share their memory (bitsandbytes' tables) cannot be saved.
            packed[f"{where}.{name}"] = value.clone()
        elif type(value) in _NUMBERS:
            packed[f"{where}.{name}:{type(value).__name__}"] = torch.tensor(value, dtype=_NUMBERS[type(value)])
        else:
            raise TypeError(f"{type(optimizer).__name__} keeps '{name}', which is neither a tensor nor a number")
    return packed


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A weight's state, of which bitsandbytes wraps a part in a dict of its own; it takes it back without."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state of `pack_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    for key, tensor in packed.items():
        where, _, label = key.rpartition(".")
        name, _, kind = label.partition(":")
        value = tensor.item() if kind else tensor
        if where.startswith(_GROUP):
            groups[int(where.partition(".")[2])][name] = value
        else:
            state.setdefault(int(where), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
