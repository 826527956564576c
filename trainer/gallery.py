"""Everything that was generated: the pictures of the outputs folder with what is in them, searchable. No torch.

The files are the truth. What was read of each is kept in the cache under its stamp (size and time), so that thousands of
files cost one look at the folder; the cache can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.comfy_prompt import parse_comfy_prompt
from trainer.errors import ConfigError, ResourceError
from trainer.files import disk_errors, is_file, is_inside, unused_path, write_json
from trainer.gallery_search import Query, parse_query
from trainer.infotext import MAX_CHARACTERS, parse_infotext
from trainer.lora_tags import read_tags
from trainer.paths import DataFolder
from trainer.picture_texts import INFOTEXT_KEY, RECIPE_KEY, SUFFIXES, PictureFile, read_picture_texts
from trainer.trash import move_to_trash, trash_records

log = logging.getLogger(__name__)
_VERSION = 1
_CACHE_FILE = "gallery.json"
_TRASH_RECORD = "picture.json"
_MAX_TEXT = 10_000
_MAX_TAGGED = 20_000


@dataclass(frozen=True)
class PictureInfo:
    """What the gallery knows of a picture. Texts come from files: whoever shows them must escape them.

    Attributes:
        name: path below the outputs folder, with "/".
        stamp: size and time of the file, by which a change is seen.
        made: seconds since the epoch.
        seed: as text; empty where the picture does not say.
    """

    name: str
    stamp: tuple[int, int]
    width: int
    height: int
    prompt: str = ""
    negative_prompt: str = ""
    model: str = ""
    seed: str = ""
    loras: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """A short name for addresses, which holds no path."""
        return hashlib.sha256(self.name.encode("utf-8", errors="surrogateescape")).hexdigest()[:16]

    @property
    def made(self) -> float:
        """When the file was written."""
        return self.stamp[1] / 1e9

    @property
    def version(self) -> str:
        """Changes with the file: a key for what is made of it."""
        return hashlib.sha256(f"{self.id}-{self.stamp}".encode()).hexdigest()


@dataclass(frozen=True)
class TrashedPicture:
    """A deleted picture that can be brought back."""

    name: str
    folder: Path
    deleted: float

    @property
    def id(self) -> str:
        """For addresses: no name of a file."""
        return hashlib.sha256(self.folder.name.encode()).hexdigest()[:16]


class Gallery:
    """The pictures of a data folder. Thread-safe."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._known: dict[str, PictureInfo | tuple[int, int]] | None = None
        self._by_id: dict[str, PictureInfo] = {}

    def path(self, picture: PictureInfo) -> Path:
        """Its file."""
        return self._data.outputs / picture.name

    def pictures(self, search: str = "") -> list[PictureInfo]:
        """The pictures there are now, newest first; those that fit the search (see `parse_query`). Raises ConfigError."""
        query = parse_query(search)
        found = self._refresh()
        if query.is_empty:
            return found
        favourites = self.favourites() if query.wants_favourites else frozenset()
        return [picture for picture in found if _fits(picture, query, favourites)]

    def get(self, picture_id: str) -> PictureInfo:
        """A picture by its id. Raises ConfigError: there is none, or it is gone."""
        found = self._by_id.get(picture_id)
        if found is None or not self.path(found).is_file():
            self._refresh()
            found = self._by_id.get(picture_id)
        if found is None:
            raise ConfigError("This picture is not there any more.", where=picture_id[:40])
        return found

    def favourites(self) -> frozenset[str]:
        """Names of the pictures that were marked."""
        try:
            names = json.loads(self._favourites_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return frozenset()
        return frozenset(map(str, names)) if isinstance(names, list) else frozenset()

    def mark(self, picture: PictureInfo, *, is_favourite: bool) -> None:
        """Mark a picture as a favourite, or take the mark away."""
        with self._lock:
            names = self.favourites() | {picture.name} if is_favourite else self.favourites() - {picture.name}
            write_json(self._favourites_path, sorted(names), "the favourites")

    def delete(self, picture: PictureInfo) -> TrashedPicture:
        """Move a picture to the trash. Raises ConfigError: it is gone already. ResourceError: it cannot be moved."""
        path = self.path(picture)
        if not path.is_file() or not is_inside(path, self._data.outputs):
            raise ConfigError("This picture is not there any more.", where=picture.name)
        deleted = time.time()
        record = {"name": picture.name, "deleted": deleted}
        folder = move_to_trash(self._data, "picture", [path], "the picture", (_TRASH_RECORD, record))
        return TrashedPicture(picture.name, folder, deleted)

    def trashed(self) -> list[TrashedPicture]:
        """Deleted pictures that are still in the trash, the last first."""
        found = [TrashedPicture(*record) for record in trash_records(self._data, _TRASH_RECORD)]
        return [trashed for trashed in found if is_file(trashed.folder / Path(trashed.name).name)]

    def restore(self, trashed: TrashedPicture) -> PictureInfo:
        """Bring a deleted picture back; where its name is taken by now, with a number behind it. Raises ConfigError."""
        source = trashed.folder / Path(trashed.name).name
        wanted = self._data.outputs / trashed.name
        if not is_inside(source, self._data.trash) or not source.is_file() or not is_inside(wanted, self._data.outputs):
            raise ConfigError("This picture is no longer in the trash.", where=trashed.name)
        target = unused_path(wanted)
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(target, "the picture"):
            shutil.move(source, target)
            shutil.rmtree(trashed.folder)
        name = target.relative_to(self._data.outputs).as_posix()
        return next(picture for picture in self._refresh() if picture.name == name)

    @property
    def _favourites_path(self) -> Path:
        return self._data.root / "favourites.json"

    def _refresh(self) -> list[PictureInfo]:
        """What lies in the folder now; only files that are new or were changed are opened."""
        with self._lock:
            known = self._load() if self._known is None else self._known
            now: dict[str, PictureInfo | tuple[int, int]] = {}
            num_read = 0
            for name, stamp in _files(self._data.outputs):
                before = known.get(name)
                is_same = before is not None and (before.stamp if isinstance(before, PictureInfo) else before) == stamp
                now[name] = before if is_same and before is not None else _look(self._data.outputs, name, stamp)
                num_read += not is_same
            if num_read or len(now) != len(known):
                self._save(now)
            self._known = now
            found = [picture for picture in now.values() if isinstance(picture, PictureInfo)]
            self._by_id = {picture.id: picture for picture in found}
            return sorted(found, key=lambda picture: (picture.stamp[1], picture.name), reverse=True)

    def _load(self) -> dict[str, PictureInfo | tuple[int, int]]:
        try:
            content = json.loads((self._data.cache / _CACHE_FILE).read_text(encoding="utf-8"))
            entries = content["files"] if content["version"] == _VERSION else []
            return {entry["name"]: _from_json(entry) for entry in entries}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("What was remembered of the pictures cannot be read; they are looked at again", exc_info=True)
            return {}

    def _save(self, known: dict[str, PictureInfo | tuple[int, int]]) -> None:
        files = [asdict(entry) for entry in known.values() if isinstance(entry, PictureInfo)]
        try:
            write_json(self._data.cache / _CACHE_FILE, {"version": _VERSION, "files": files}, "the gallery's list")
        except (OSError, ResourceError):
            # Only time is lost: what was read is read again after a restart.
            log.warning("What is known of the pictures could not be kept", exc_info=True)


def _from_json(entry: dict[str, Any]) -> PictureInfo:
    size, time_ns = entry["stamp"]
    return PictureInfo(**{**entry, "stamp": (int(size), int(time_ns)), "loras": tuple(entry["loras"])})


def _files(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Pictures below a folder, as names and stamps. Links are not followed: they may lead out of it."""
    waiting = [(root, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file(follow_symlinks=False):
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError:  # deleted since it was listed
                    continue
                yield prefix + entry.name, (facts.st_size, facts.st_mtime_ns)


def _look(root: Path, name: str, stamp: tuple[int, int]) -> PictureInfo | tuple[int, int]:
    """What a file says; its stamp alone where it is no picture."""
    try:
        picture = read_picture_texts(root / name)
    except ConfigError:
        log.info("Not a picture that can be read: %s", name)
        return stamp
    facts = _facts(picture)
    for key, value in facts.items():
        facts[key] = value[:_MAX_TEXT] if isinstance(value, str) else value
    return PictureInfo(name, stamp, picture.width, picture.height, **facts)


def _facts(picture: PictureFile) -> dict[str, Any]:
    texts = picture.texts
    try:
        if RECIPE_KEY in texts:
            return _own_facts(json.loads(texts[RECIPE_KEY])["settings"])
        infotext = texts.get(INFOTEXT_KEY, "")
        if infotext and len(infotext) <= MAX_CHARACTERS:
            return _infotext_facts(infotext)
        if "prompt" in texts:
            graph = parse_comfy_prompt(texts["prompt"])
            values = {key: str(graph.values.get(key, "")) for key in ("prompt", "negative_prompt", "seed")}
            return {**values, "model": graph.model, "loras": tuple(name for name, _, _ in graph.loras)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        log.info("A picture's recipe cannot be read", exc_info=True)
    return {}


def _own_facts(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": str(settings.get("prompt", "")),
        "negative_prompt": str(settings.get("negative_prompt", "")),
        "model": str(settings.get("base", "")),
        "seed": str(settings.get("seed", "")),
        "loras": tuple(str(lora["file"]) for lora in settings.get("loras", ())),
    }


def _infotext_facts(text: str) -> dict[str, Any]:
    found = parse_infotext(text)
    tags = read_tags(found.prompt).tags if len(found.prompt) <= _MAX_TAGGED else ()
    return {
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        "model": found.get("Model"),
        "seed": found.get("Seed"),
        "loras": tuple(tag.name for tag in tags),
    }


def _fits(picture: PictureInfo, query: Query, favourites: frozenset[str]) -> bool:
    values: dict[str, Sequence[str]] = {
        "": (picture.prompt, picture.name, picture.model, *picture.loras),
        "negative": (picture.negative_prompt,),
        "lora": picture.loras,
        "model": (picture.model,),
        "seed": (picture.seed,),
        "date": (time.strftime("%Y-%m-%d", time.localtime(picture.made)),),
    }
    return query.fits(values, is_favourite=picture.name in favourites)
