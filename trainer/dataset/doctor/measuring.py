"""The one pass over all files of a data set: decodes each once, measures it, and remembers that by the file's content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from trainer.dataset.colours import DECODER_ERRORS
from trainer.dataset.doctor.measures import VERSION, Measures, jpeg_quality, measure
from trainer.dataset.pictures import UnusablePicture
from trainer.dataset.scan import DatasetScan, PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.files import disk_errors, write_bytes
from trainer.paths import DataFolder

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], object]
"""Called with (what is done, pictures done, pictures in all)."""


class MeasureCache:
    """Measures by the SHA-256 of the picture's file, and what was done to it; a line each, written as they come: a pass that is ended goes on there."""

    def __init__(self, data: DataFolder, folder: Path) -> None:
        self.path = _cache_path(data, folder, ".jsonl")
        self._lock = threading.Lock()
        self._known: dict[str, Measures] = {}
        self._num_lines = 0
        self._load()

    def _load(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        self._num_lines = len(lines)
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["version"] == VERSION:
                    self._known[entry["sha256"]] = Measures.from_json(entry["measures"])
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a pass that was cut off: that picture is measured again

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._known

    def get(self, sha256: str) -> Measures | None:
        """The measures of a file, if it was measured."""
        return self._known.get(sha256)

    def add(self, sha256: str, measures: Measures) -> None:
        """Remember. Thread-safe. Raises ResourceError: the disk is full."""
        line = _line(sha256, measures)
        with self._lock, disk_errors(self.path, "the measures of the pictures"):
            self._known[sha256] = measures
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell() and not _ends_whole(file):
                    line = b"\n" + line
                file.write(line)
            self._num_lines += 1

    def tidy(self, wanted: Sequence[str]) -> None:
        """Forget the measures of files that are gone, once they are more than half."""
        kept = {sha256: self._known[sha256] for sha256 in wanted if sha256 in self._known}
        if self._num_lines > 2 * len(kept) + 100:
            lines = b"".join(_line(sha256, measures) for sha256, measures in kept.items())
            write_bytes(self.path, lines, "the measures of the pictures")
            self._known, self._num_lines = kept, len(kept)


def alike_path(data: DataFolder, folder: Path) -> Path:
    """Where it is kept which pictures of a folder were compared, and which show the same: for `Alike`."""
    return _cache_path(data, folder, "-alike.json")


def _cache_path(data: DataFolder, folder: Path, ending: str) -> Path:
    key = hashlib.sha256(str(folder).encode("utf-8", errors="surrogateescape")).hexdigest()[:24]
    return data.cache / "check" / f"{key}{ending}"


def _ends_whole(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _line(sha256: str, measures: Measures) -> bytes:
    return (json.dumps({"version": VERSION, "sha256": sha256, "measures": measures.to_json()}) + "\n").encode()


def measure_dataset(data: DataFolder, name: str, progress: Progress | None = None) -> DatasetScan:
    """Decode and measure every picture that is not known, on all cores; returns the scan.

    Args:
        data: the data folder.
        name: of a data set, or a folder.
        progress: what it raises ends the pass; what was measured until then stays.

    Raises: DatasetError: there is no such data set. ResourceError: the disk is full.
    """
    store = DatasetStore(data)
    cache = MeasureCache(data, store.get(name).folder)
    tell = progress or (lambda what, done, total: None)

    def observe(path: Path, sha256: str, image: Image.Image) -> None:
        if sha256 not in cache:
            cache.add(sha256, measure(image, _quality(path)))

    scan = store.scan(name, progress=lambda done, total: tell("Looking at the pictures", done, total), observe=observe)
    # Those that an earlier scan had decoded for another purpose, and what was turned, cropped or filled.
    rest = list({facts.content: facts for facts in scan.usable if facts.content not in cache}.values())
    _measure_all(rest, observe, tell)
    cache.tidy([key for facts in scan.pictures for key in dict.fromkeys((facts.content, facts.sha256))])
    return scan


def _measure_all(
    pictures: Sequence[PictureFacts], observe: Callable[[Path, str, Image.Image], None], tell: Progress
) -> None:
    def look(facts: PictureFacts) -> None:
        try:
            observe(facts.path, facts.content, facts.open())
        except UnusablePicture:
            log.warning("%s cannot be read any more", facts.path)  # the next scan says why

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        try:
            for done, _ in enumerate(pool.map(look, pictures), start=1):
                tell("Measuring the pictures", done, len(pictures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _quality(path: Path) -> int:
    try:
        with open(path, "rb") as handle:
            if handle.read(2) != b"\xff\xd8":
                return 0
            handle.seek(0)
            return jpeg_quality(JpegImagePlugin.JpegImageFile(handle).quantization)
    except DECODER_ERRORS:
        return 0  # it was decoded a moment ago, so what is odd about its header does not matter


def measures_of(data: DataFolder, folder: Path, pictures: Sequence[PictureFacts]) -> dict[str, Measures]:
    """What is known of pictures, by name; those that were not measured yet are not in it."""
    cache = MeasureCache(data, folder)
    found = {facts.name: cache.get(facts.content) for facts in pictures}
    return {name: measures for name, measures in found.items() if measures is not None}
