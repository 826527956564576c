"""Stacks of LoRAs under a name: small JSON files that can be shared. Imports no torch.

A file names each LoRA with its weights and the hashes of its file, so that it is found again where it has another name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config.generate import StackedLora
from trainer.errors import ConfigError
from trainer.files import is_file, is_inside, safe_name, unused_path, write_json
from trainer.library import SUFFIX, LibraryEntry, list_loras
from trainer.lora_lookup import known_hashes, match_lora
from trainer.paths import DataFolder
from trainer.trash import move_to_trash

STACK_SUFFIX = ".json"
_MARK = "inkwash_stack"
_VERSION = 1
_MAX_BYTES = 1_000_000
_HASH_KEYS = ("sha256", "tensors_sha256")


@dataclass(frozen=True)
class SavedStack:
    """A stack as it was saved, with its LoRAs found in this library.

    Attributes:
        loras: those that are there, under the names that they have here.
        missing: names of those that are not, as they were saved.
        notes: sentences about LoRAs that are not quite what was saved.
    """

    name: str
    loras: tuple[StackedLora, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def list_stacks(data: DataFolder) -> list[str]:
    """Names of the saved stacks, in the order of the alphabet."""
    files = [path for path in data.stacks.glob(f"*{STACK_SUFFIX}") if not path.name.startswith(".")]
    return sorted((path.stem for path in files), key=str.casefold)


def save_stack(data: DataFolder, name: str, loras: Sequence[StackedLora], *, overwrite: bool = False) -> Path:
    """Save a stack under a name. Returns the file, which can be given to others: it holds no path of this computer.

    Raises: ConfigError: the name is empty or taken, or there is nothing to save. ResourceError: the disk is full.
    """
    clean = safe_name(name, "")
    if not clean:
        raise ConfigError("A stack needs a name.", where="name", fix="Write a name of letters or digits.")
    if not loras:
        raise ConfigError("There is no LoRA on the stack.", where="loras", fix="Put one on it first.")
    path = data.stacks / f"{clean}{STACK_SUFFIX}"
    if path.exists() and not overwrite:
        raise ConfigError(
            f"There is already a stack '{clean}'.", where="name", fix="Choose another name, or delete that one first."
        )
    entries = list_loras(data)
    write_json(path, {_MARK: _VERSION, "name": clean, "loras": [_record(lora, entries) for lora in loras]}, "the stack")
    return path


def load_stack(data: DataFolder, name_or_path: str | Path) -> SavedStack:
    """A saved stack by its name, or a file that somebody shared.

    A LoRA is taken by its name where the file is the one that was saved; else the file with the same hash, whatever it
    is called here; else what has the name, with a note.

    Raises: ConfigError: there is no such stack, or the file is no stack.
    """
    path = _stack_file(data, str(name_or_path))
    return _in_library(data, _read(path), path.stem, str(path))


def _in_library(data: DataFolder, content: dict[str, Any], name: str, where: str) -> SavedStack:
    """What a stack's file says, with its LoRAs as this library calls them. `name` is for a file that has none."""
    entries = list_loras(data)
    loras: list[StackedLora] = []
    missing: list[str] = []
    notes: list[str] = []
    for record in map(dict, content["loras"]):
        saved = {key: record.pop(key, "") for key in _HASH_KEYS}
        entry, note = match_lora(data, str(record.get("file", "")), map(str, saved.values()), entries)
        if entry is None:
            missing.append(str(record.get("file", "")))
            continue
        notes += [note] if note else []
        try:
            loras.append(StackedLora.model_validate({**record, "file": entry.name}))
        except ValidationError as error:
            raise _no_stack(where) from error
    return SavedStack(str(content.get("name") or name), tuple(loras), tuple(missing), tuple(notes))


def import_stack(data: DataFolder, path: Path) -> SavedStack:
    """Copy a shared file to the saved stacks, under a name that is free, and load it. Raises ConfigError."""
    file = _stack_file(data, str(path))
    return _taken_in(data, _read(file), file.stem, str(file))


def import_stack_content(data: DataFolder, content: dict[str, Any]) -> SavedStack:
    """As `import_stack`, of what a shared file says. Raises ConfigError."""
    where = "the content"
    if len(json.dumps(content)) > _MAX_BYTES:
        raise _no_stack(where)
    return _taken_in(data, _checked(content, where), "stack", where)


def _taken_in(data: DataFolder, content: dict[str, Any], name: str, where: str) -> SavedStack:
    stack = _in_library(data, content, name, where)
    target = unused_path(data.stacks / f"{safe_name(stack.name, name)}{STACK_SUFFIX}")
    write_json(target, {**content, "name": target.stem}, "the stack")
    return SavedStack(target.stem, stack.loras, stack.missing, stack.notes)


def delete_stack(data: DataFolder, name: str) -> Path:
    """Move a saved stack to the trash. Returns where it lies now. Raises ConfigError."""
    path = _saved_file(data, name)
    return move_to_trash(data, "stack", [path], "the stack") / path.name


def stack_file(data: DataFolder, name: str) -> Path:
    """The file of a saved stack. Raises ConfigError."""
    return _saved_file(data, name)


def _record(lora: StackedLora, entries: Sequence[LibraryEntry]) -> dict[str, Any]:
    record = lora.model_dump(mode="json")
    name = lora.file.removesuffix(SUFFIX)
    entry = next((entry for entry in entries if name == entry.name or lora.file == str(entry.path)), None)
    if entry is None:
        return {**record, "file": Path(name).name}
    return {**record, "file": entry.name, **dict(zip(_HASH_KEYS, known_hashes(entry), strict=False))}


def _stack_file(data: DataFolder, name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.suffix == STACK_SUFFIX and is_file(path):
        return path
    return _saved_file(data, name_or_path)


def _saved_file(data: DataFolder, name: str) -> Path:
    path = data.stacks / f"{name.removesuffix(STACK_SUFFIX)}{STACK_SUFFIX}"
    if name and is_file(path) and is_inside(path, data.stacks):
        return path
    known = list_stacks(data)
    fix = (
        f"There are: {', '.join(known[:10])}."
        if known
        else "Save one in the Generate tab, or with `inkwash stack save`."
    )
    raise ConfigError(f"There is no saved stack '{name}'.", where="stack", fix=fix)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _no_stack(str(path))
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise _no_stack(str(path)) from error
    return _checked(content, str(path))


def _checked(content: Any, where: str) -> dict[str, Any]:
    """What a stack's file says, if it is one. Raises ConfigError."""
    loras = content.get("loras") if isinstance(content, dict) else None
    if not isinstance(loras, list) or _MARK not in content or not all(isinstance(lora, dict) for lora in loras):
        raise _no_stack(where)
    if content[_MARK] != _VERSION:
        raise ConfigError(
            "This stack was saved by a newer Inkwash.", where=where, fix="Update Inkwash, then open it again."
        )
    return content


def _no_stack(where: str) -> ConfigError:
    return ConfigError(
        "This file is no stack of LoRAs, or it is damaged.",
        where=where,
        fix="Choose a .json file that Inkwash saved as a stack.",
    )
