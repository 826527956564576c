"""What scans remember of files on the disk, so that a second scan decodes nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import PIL

from trainer.dataset.problems import Problem
from trainer.errors import ResourceError
from trainer.files import write_json

log = logging.getLogger(__name__)
# Entries of another version say what another Pillow, or another Inkwash, thought of the picture.
_CACHE_VERSION = f"2/{PIL.__version__}"


@dataclass(frozen=True)
class FileFacts:
    """What follows from a picture file's bytes alone: this is what the cache keeps."""

    width: int
    height: int
    sha256: str
    problems: tuple[Problem, ...]
    description: str = ""


def load_cache(cache: Path | None) -> dict[str, tuple[tuple[int, int], FileFacts]]:
    """What is known, by path, with size and time of change; nothing where there is no cache or it cannot be read."""
    if cache is None:
        return {}
    try:
        data = json.loads(cache.read_text(encoding="utf-8"))
        if data["version"] != _CACHE_VERSION:
            return {}
        return {
            path: (
                (entry["size"], entry["mtime_ns"]),
                FileFacts(
                    entry["width"],
                    entry["height"],
                    entry["sha256"],
                    tuple(Problem(**p) for p in entry["problems"]),
                    entry["description"],
                ),
            )
            for path, entry in data["files"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("The index of pictures %s cannot be read; it is made anew", cache)
        return {}


def save_cache(cache: Path, entries: dict[str, tuple[tuple[int, int], FileFacts]]) -> None:
    """Write it; where that fails, the next scan takes longer, no more."""
    files = {
        path: {"size": key[0], "mtime_ns": key[1], **asdict(found)} for path, (key, found) in sorted(entries.items())
    }
    try:
        write_json(cache, {"version": _CACHE_VERSION, "files": files}, "the index of pictures")
    except (ResourceError, OSError):
        log.warning("The index of pictures %s could not be saved", cache, exc_info=True)
