"""What a captioning run has done so far, in its folder: whatever ends it, no picture is captioned twice and nothing is lost. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.files import disk_errors

NAME = "captions.jsonl"


@dataclass(frozen=True)
class Noted:
    """A picture with the caption that it had and the new one; an empty one where there was nothing to say."""

    picture: str
    before: str
    caption: str


class Notes:
    """The file `captions.jsonl`: a line a picture, a line of those that failed, and a line when what stands above was put into the data set."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.done: dict[str, Noted] = {}
        """All pictures that this run has described, by name."""
        self.open: dict[str, Noted] = {}
        """Those of them that are not in the data set yet."""
        self.failed: dict[str, None] = {}
        """Pictures that could not be described, by name, in order."""
        for line in _lines(self._path):
            if "kept" in line:
                self.open.clear()
            elif "failed" in line:
                self.failed |= dict.fromkeys(line["failed"])
            else:
                self._take(Noted(line["picture"], line["before"], line["caption"]))

    def _take(self, noted: Noted) -> None:
        self.done[noted.picture] = self.open[noted.picture] = noted
        self.failed.pop(noted.picture, None)

    def add(self, noted: Noted) -> None:
        """Write a picture down."""
        self._take(noted)
        self._write(asdict(noted))

    def fail(self, pictures: Sequence[str]) -> None:
        """Write down which pictures could not be described."""
        if pictures:
            self.failed |= dict.fromkeys(pictures)
            self._write({"failed": list(pictures)})

    def keep(self) -> None:
        """Note that the data set has them all now."""
        self._write({"kept": len(self.open)})
        self.open.clear()

    def _write(self, line: dict[str, Any]) -> None:
        with disk_errors(self._path, "the captions"), self._path.open("a", encoding="utf-8") as file:
            # A line of its own, also behind one that was cut off halfway.
            file.write("\n" + json.dumps(line, ensure_ascii=False))
            file.flush()
            if "kept" in line:
                os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    for text in texts:
        try:
            line = json.loads(text) if text else None
        except ValueError:
            continue  # cut off while it was written
        if isinstance(line, dict) and (
            {"kept", "failed"} & line.keys() or {"picture", "before", "caption"} <= line.keys()
        ):
            yield line
