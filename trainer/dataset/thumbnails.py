"""Small views of pictures, made once for each content and size."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from trainer.dataset.backgrounds import Background
from trainer.dataset.crops import Crop, open_prepared
from trainer.errors import DatasetError
from trainer.files import file_sha256, write_atomically
from trainer.paths import DataFolder


def make_thumbnail(
    data: DataFolder,
    picture: Path,
    size: int,
    sha256: str = "",
    crop: Crop | None = None,
    background: Background | None = None,
) -> Path:
    """A JPEG of `picture`, or of its crop, as it is trained, with its longest side at most `size` px, in the cache.

    Raises: DatasetError: the picture cannot be read. ResourceError: the disk is full.
    """
    try:
        digest = sha256 or file_sha256(picture)
    except OSError as failure:
        raise DatasetError("This picture cannot be read.", where=str(picture)) from failure
    part = "" if crop is None else f"-{'-'.join(map(str, crop.box))}"
    part += "" if background is None else f"-{background.mask.sha256[:16]}{background.colour[1:]}"
    path = data.cache / "thumbnails" / digest[:2] / f"{digest}{part}-{size}.jpg"
    if not path.exists():
        image = open_prepared(picture, crop, background)
        image.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=88), "a thumbnail")
    return path
