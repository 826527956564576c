"""Files as a browser gives them: each in a place of its own, with the name that it had below the folder which was chosen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.dataset.archives import safe_file_name
from trainer.files import disk_errors, safe_name, unused_path

_MAX_DEPTH = 16


@dataclass(frozen=True)
class Dropped:
    """A file, and its name relative to what was dropped, such as `holiday/sea/1.png`; a name without `/` is a loose file's."""

    path: Path
    name: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders it lay in, as names that every system accepts; nothing leads out of them."""
        parts = PurePosixPath(self.name.replace("\\", "/")).parts[:-1]
        kept = [safe_name(part) for part in parts if part not in ("/", ".", "..")]
        return tuple(kept[:_MAX_DEPTH])


Source = str | Path | Dropped
"""What pictures are taken from: a picture, a caption, a folder or a zip."""


def as_dropped(source: Source) -> Dropped:
    """A source with its name, which may be empty."""
    return source if isinstance(source, Dropped) else Dropped(Path(source))


def has_folders(sources: Iterable[Source]) -> bool:
    """Whether any of the sources is said to lie in a folder."""
    return any(as_dropped(source).folders for source in sources)


def lay_out(sources: Sequence[Source], folder: Path) -> list[Path]:
    """Put the files that are said to lie in folders into these, in `folder`.

    Args:
        sources: those without a name are given back as they are.
        folder: an empty folder of ours; it gets links to the files, or copies where the disk has no links.

    Returns: what is to be imported: `folder`, where anything lies in it, and the other sources. Raises: ResourceError.
    """
    others = list[Path]()
    for source in map(as_dropped, sources):
        if not source.folders or not source.path.is_file():
            others.append(source.path)
            continue
        target = folder.joinpath(*source.folders, safe_file_name(PurePosixPath(source.name.replace("\\", "/")).name))
        with disk_errors(target, source.name):
            target.parent.mkdir(parents=True, exist_ok=True)
            target = unused_path(target)
            try:
                os.link(source.path, target)
            except OSError:
                shutil.copyfile(source.path, target)
    return [folder, *others] if any(folder.iterdir()) else others
