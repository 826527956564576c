"""Looking at the files of a folder: each is decoded once, in several threads, and remembered by its path, size and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from trainer.dataset.embedded import embedded_caption
from trainer.dataset.pictures import UnusablePicture, read_picture
from trainer.dataset.problems import error
from trainer.dataset.scan_cache import FileFacts, load_cache, save_cache
from trainer.files import file_sha256

Progress = Callable[[int, int], object]
"""Called with (pictures done, pictures in all)."""
Observe = Callable[[Path, str, Image.Image], object]
"""Called with each picture that had to be decoded: where it is, the SHA-256 of its file, and its pixels. In several threads."""
_SAVED_EVERY = 1000


def look_at_all(
    masks: Sequence[Path],
    pictures: Sequence[Path],
    cache: Path | None,
    progress: Progress | None,
    observe: Observe | None,
) -> dict[Path, FileFacts]:
    """Facts of all files. What `progress` raises ends it; what was seen until then stays in the cache.

    Args:
        masks, pictures: the files; only pictures are shown to `observe`.
        cache: a JSON file that remembers what was seen; None: nothing is remembered.
        progress: called after each file.
        observe: looks at the pictures that are decoded; on all cores then.
    """
    known, current = load_cache(cache), dict[str, tuple[tuple[int, int], FileFacts]]()
    observers = {path: observe for path in pictures} if observe else {}
    num_threads = (os.cpu_count() or 1) if observe else min(4, os.cpu_count() or 1)
    looked: dict[Path, FileFacts] = {}
    paths = [*masks, *pictures]
    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        try:
            every = pool.map(lambda path: _look(path, known, observers.get(path)), paths)
            for done, (path, key, found) in enumerate(every, start=1):
                looked[path] = found
                if key is not None:
                    current[str(path)] = (key, found)
                if cache is not None and done % _SAVED_EVERY == 0:
                    save_cache(cache, known | current)
                if progress is not None:
                    progress(done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            if cache is not None:
                save_cache(cache, known | current)
            raise
    if cache is not None and current != known:
        save_cache(cache, current)
    return looked


def _look(
    path: Path, known: dict[str, tuple[tuple[int, int], FileFacts]], observe: Observe | None
) -> tuple[Path, tuple[int, int] | None, FileFacts]:
    """Facts of one file, from the cache where the file is unchanged. The key is None where it cannot be remembered."""
    try:
        status = path.stat()
        key = (status.st_size, status.st_mtime_ns)
        if str(path) in known and known[str(path)][0] == key and os.access(path, os.R_OK):
            return path, key, known[str(path)][1]
        image, problems, description = None, (), ""
        try:
            read = read_picture(path, describe=embedded_caption)
            image, problems, description = read.image, read.problems, read.description
        except UnusablePicture as failure:
            problems = (failure.problem,)
            if failure.problem.code in ("unreadable", "missing", "not_a_file"):
                return path, None, FileFacts(0, 0, "", problems)
        width, height = image.size if image is not None else (0, 0)
        digest = file_sha256(path)
        if image is not None and observe is not None:
            observe(path, digest, image)
        return path, key, FileFacts(width, height, digest, problems, description)
    except OSError as failure:
        problem = error("unreadable", f"This file cannot be read ({failure.strerror or failure}).", "Copy it anew.")
        return path, None, FileFacts(0, 0, "", (problem,))
