"""Models in the data folder and in folders of other programs, used in place: headers only, remembered between scans."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.checkpoints import CHECKPOINT_SUFFIXES, describe_checkpoint
from trainer.base_models.detection import NotABaseModelError
from trainer.base_models.folders import describe_folder
from trainer.base_models.info import BaseModelInfo, Traits
from trainer.errors import ConfigError
from trainer.files import TEMPORARY_PREFIX, write_json
from trainer.paths import DataFolder

log = logging.getLogger(__name__)
_FOLDERS_FILE, _CACHE_FILE = "model-folders.json", "base-models.json"
# Changes when what is detected, or how it is kept, changes.
_VERSION = 2
_HASH_BLOCK = 8 * 2**20
# Where A1111, Forge and ComfyUI keep checkpoints and diffusers folders, below the folder that they are installed in.
_PLACES = ("models/Stable-diffusion", "models/checkpoints", "models/diffusers")

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True)
class _Record:
    """A file as it was when it was looked at; `info` is None for what is no base model."""

    size: int
    mtime_ns: int
    info: BaseModelInfo | None
    sha256: str = ""


_memory: dict[Path, dict[str, _Record]] = {}


def model_folders(data: DataFolder) -> list[Path]:
    """The user's model folders, in the order in which they were added."""
    try:
        found = json.loads((data.root / _FOLDERS_FILE).read_text(encoding="utf-8"))["folders"]
        return [Path(folder) for folder in found if isinstance(folder, str)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("The list of model folders cannot be read; it is taken as empty", exc_info=True)
        return []


def add_model_folder(data: DataFolder, folder: str | Path) -> Path:
    """Remember a folder whose models are used in place. Nothing is ever written to it. Raises ConfigError."""
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise ConfigError(
            "There is no such folder.",
            where=str(path),
            fix="Give the folder of the models, or the one that the other program is installed in.",
        )
    known = model_folders(data)
    if path not in known:
        write_json(data.root / _FOLDERS_FILE, {"folders": [str(entry) for entry in (*known, path)]})
    return path


def remove_model_folder(data: DataFolder, folder: str | Path) -> None:
    """Forget a folder; its files stay as they are. Raises ConfigError."""
    path = Path(folder).expanduser().absolute()
    known = model_folders(data)
    if path not in known:
        raise ConfigError("This folder is not in the list.", where=str(path), fix="See `inkwash model list`.")
    write_json(data.root / _FOLDERS_FILE, {"folders": [str(entry) for entry in known if entry != path]})


def scan_models(data: DataFolder, progress: Progress | None = None) -> list[BaseModelInfo]:
    """All base models in the data folder and in the user's folders, by name within each folder.

    Files that are no base models are passed over; those that are, and cannot be used, have a `problem`.
    """
    records = _load(data)
    paths = list(dict.fromkeys(path for root in (data.models, *model_folders(data)) for path in _models_below(root)))
    models: list[BaseModelInfo] = []
    changed = False
    with _without_collector():
        for done, path in enumerate(paths):
            if progress is not None:
                progress(done, len(paths))
            if path.is_dir():
                models.append(describe_folder(path))
                continue
            record, is_new = _look(path, records)
            changed = changed or is_new
            if record is not None and record.info is not None:
                models.append(record.info)
    if changed:
        _save(data, records)
    return models


@contextmanager
def _without_collector() -> Iterator[None]:
    """Headers are thousands of small objects, none of them in a cycle: looking for cycles took half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def model_sha256(data: DataFolder, path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a single file, by which other programs know it; computed once, remembered as long as it is unchanged."""
    records = _load(data)
    record, _ = _look(path, records)
    if record is None or not record.sha256:
        facts = path.stat()
        info = record.info if record else None
        record = _Record(facts.st_size, facts.st_mtime_ns, info, _hash(path, facts.st_size, progress))
        records[str(path)] = record
        _save(data, records)
    return record.sha256


def known_sha256(data: DataFolder, path: Path) -> str:
    """The SHA-256 if it was computed before and the file is unchanged, else nothing."""
    record = _load(data).get(str(path))
    return record.sha256 if record is not None and _is_current(record, path) else ""


def known_files(data: DataFolder) -> dict[Path, str]:
    """Files that were looked at before, are unchanged and are no base model, with the SHA-256 of each as far as it is known."""
    records = _load(data)
    found = {Path(path): record for path, record in records.items() if record.info is None}
    return {path: record.sha256 for path, record in found.items() if _is_current(record, path)}


def _hash(path: Path, size: int, progress: Progress | None) -> str:
    digest, done = hashlib.sha256(), 0
    with open(path, "rb") as handle:
        while block := handle.read(_HASH_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, size)
    return digest.hexdigest()


def _models_below(root: Path) -> Iterator[Path]:
    """Diffusers folders and possible checkpoints, in order of their names."""
    places = [root / place for place in _PLACES if (root / place).is_dir()]
    for place in places or [root]:
        yield from _walk(place, set())


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen or not folder.is_dir():
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.casefold())
    except OSError:
        log.warning("The folder %s cannot be read", folder, exc_info=True)
        return
    for entry in entries:
        if entry.name.startswith((".", TEMPORARY_PREFIX)):
            continue
        path = folder / entry.name
        if entry.is_dir():
            if (path / "model_index.json").is_file():
                yield path
            else:
                yield from _walk(path, seen)
        elif path.suffix.lower() in CHECKPOINT_SUFFIXES:
            yield path


def _look(path: Path, records: dict[str, _Record]) -> tuple[_Record | None, bool]:
    """What is known of a file, looked up or read anew; and whether it was read."""
    record = records.get(str(path))
    if record is not None and _is_current(record, path):
        return record, False
    try:
        facts = path.stat()
        info = describe_checkpoint(path)
    except NotABaseModelError:
        info = None
    except OSError:
        # Gone since the folder was listed.
        return None, False
    records[str(path)] = record = _Record(facts.st_size, facts.st_mtime_ns, info)
    return record, True


def _is_current(record: _Record, path: Path) -> bool:
    try:
        facts = path.stat()
    except OSError:
        return False
    return (record.size, record.mtime_ns) == (facts.st_size, facts.st_mtime_ns)


def _load(data: DataFolder) -> dict[str, _Record]:
    file = data.cache / _CACHE_FILE
    if file not in _memory:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            entries = content["files"] if content["version"] == _VERSION else {}
            _memory[file] = {path: _from_json(entry) for path, entry in entries.items()}
        except FileNotFoundError:
            _memory[file] = {}
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("What was remembered of the models cannot be read; they are looked at again", exc_info=True)
            _memory[file] = {}
    return _memory[file]


def _save(data: DataFolder, records: dict[str, _Record]) -> None:
    kept = {path: record for path, record in records.items() if os.path.exists(path)}
    files = {path: _to_json(record) for path, record in kept.items()}
    write_json(data.cache / _CACHE_FILE, {"version": _VERSION, "files": files})


def _to_json(record: _Record) -> dict[str, Any]:
    info = None if record.info is None else {**asdict(record.info), "path": str(record.info.path)}
    return {"size": record.size, "mtime_ns": record.mtime_ns, "sha256": record.sha256, "info": info}


def _from_json(entry: dict[str, Any]) -> _Record:
    info = None
    if entry["info"] is not None:
        values = dict(entry["info"])
        values["path"] = Path(values["path"])
        values["traits"] = Traits(**values["traits"])
        values["example_prompts"] = tuple(values["example_prompts"])
        info = BaseModelInfo(**values)
    return _Record(int(entry["size"]), int(entry["mtime_ns"]), info, str(entry["sha256"]))
