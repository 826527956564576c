"""Masks that were painted or made in the app: kept in the data set's record under their SHA-256, never beside pictures.

White is the subject. As a mask lies under the hash of its bytes and is never overwritten, undo and redo only have to name it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.dataset.colours import DECODER_ERRORS
from trainer.errors import DatasetError
from trainer.files import write_bytes

FOLDER = ".masks"
"""In the record's folder; hidden, so that of a data set of ours, whose pictures lie there too, no mask is taken for a picture."""
MAX_SIDE = 2048
_MAX_BYTES = 16_000_000

MaskEntry = tuple[str, int, int]
"""As the record has it: SHA-256 of the file, its width and height in px."""


def mask_path(record: Path, sha256: str) -> Path:
    """Where a mask of a record lies."""
    return record / FOLDER / f"{sha256}.png"


def decode_painted(data: bytes) -> Image.Image:
    """A painted PNG, by its alpha channel, as grey.

    Raises: DatasetError: it is no PNG, or larger than any that the app makes.
    """
    wrong = DatasetError("What was painted did not arrive whole.", fix="Paint it again.")
    if len(data) > _MAX_BYTES:
        raise wrong
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > MAX_SIDE:
                raise wrong
            return image.convert("RGBA").getchannel("A")
    except DECODER_ERRORS as failure:
        raise wrong from failure


def keep_mask(record: Path, mask: Image.Image) -> MaskEntry:
    """Write a grey mask into a record; returns its entry. Raises ResourceError: the disk is full."""
    buffer = io.BytesIO()
    mask.convert("L").save(buffer, format="PNG")
    data = buffer.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    path = mask_path(record, sha256)
    if not path.exists():
        write_bytes(path, data, "a mask")
    return sha256, mask.width, mask.height


def subject_share(mask: Image.Image) -> float:
    """Share of a grey mask that is subject, from 0 to 1."""
    return float(np.asarray(mask.convert("L"), dtype=np.float64).mean() / 255)
