"""Small views of pictures, made once for each content and size."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from trainer.dataset.preparation import AS_IN_FILE, Preparation
from trainer.errors import DatasetError
from trainer.files import file_sha256, write_atomically
from trainer.paths import DataFolder


def make_thumbnail(
    data: DataFolder, picture: Path, size: int, sha256: str = "", preparation: Preparation = AS_IN_FILE
) -> Path:
    """A JPEG of `picture`, as it is trained, with its longest side at most `size` px, in the cache.

    Raises: DatasetError: the picture cannot be read. ResourceError: the disk is full.
    """
    try:
        digest = sha256 or file_sha256(picture)
    except OSError as failure:
        raise DatasetError("This picture cannot be read.", where=str(picture)) from failure
    done = preparation.content
    part = f"-{hashlib.sha256(done.encode()).hexdigest()[:24]}" if done else ""
    path = data.cache / "thumbnails" / digest[:2] / f"{digest}{part}-{size}.jpg"
    if not path.exists():
        image = preparation.open(picture)
        image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=88), "a thumbnail")
    return path
