"""Pictures and masks that a generation starts from: kept by what is in them, so that a recipe can name them. No torch."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from PIL import Image, ImageChops

from trainer.config.generate import GenerateConfig
from trainer.dataset.pictures import open_coverage, open_picture
from trainer.errors import ConfigError, DatasetError
from trainer.files import file_sha256, is_file, write_atomically, write_bytes
from trainer.paths import DataFolder

_DIGITS = 20


def with_kept_pictures(config: GenerateConfig, data: DataFolder) -> GenerateConfig:
    """The settings with their pictures copied into the data folder, and named by content.

    Done before a run is made: what is changed or deleted later does not change the run, and its recipe finds the pictures again.

    Raises: ConfigError: a picture is missing or cannot be read; the mask is empty.
    """
    names = {
        field: _keep(getattr(config, field), field, data) for field in ("init_image", "mask") if getattr(config, field)
    }
    if not names:
        return config
    kept = config.model_copy(update=names)
    if kept.mask and _coverage(kept, data).getbbox() is None:
        raise ConfigError(
            "The mask is empty: nothing would be painted.", where="mask", fix="Paint over what is to change, in white."
        )
    return kept


def open_init(config: GenerateConfig, data: DataFolder) -> Image.Image:
    """The picture to start from, RGB, upright. Raises ConfigError."""
    path = _find(config.init_image, "init_image", data)
    try:
        return open_picture(path)
    except DatasetError as error:
        raise ConfigError(
            f"The start picture cannot be used: {error.message}", where="init_image", fix=error.fix
        ) from error


def open_mask(config: GenerateConfig, data: DataFolder) -> Image.Image:
    """The mask at the size of the start picture, grey: white is painted anew. Raises ConfigError."""
    return _coverage(config, data).resize(open_init(config, data).size, Image.Resampling.BILINEAR)


def _coverage(config: GenerateConfig, data: DataFolder) -> Image.Image:
    try:
        return open_coverage(_find(config.mask, "mask", data)).convert("L")
    except DatasetError as error:
        raise ConfigError(f"The mask cannot be used: {error.message}", where="mask", fix=error.fix) from error


def _keep(text: str, field: str, data: DataFolder) -> str:
    path = _find(text, field, data)
    if path.parent == data.inputs:
        return path.name
    try:
        (open_picture if field == "init_image" else open_coverage)(path)
    except DatasetError as error:
        what = "start picture" if field == "init_image" else "mask"
        raise ConfigError(f"The {what} cannot be used: {error.message}", where=field, fix=error.fix) from error
    kept = data.inputs / f"{file_sha256(path)[:_DIGITS]}{path.suffix.lower()}"
    if not kept.exists():
        write_atomically(kept, lambda temporary: shutil.copyfile(path, temporary), "the start picture")
    return kept.name


def _find(text: str, field: str, data: DataFolder) -> Path:
    """A picture by its path, or by its name among those that were kept."""
    # A name with folders in it is a path; without, it may not lead out of the folder.
    kept = data.inputs / (PureWindowsPath(text).name or "-")
    for path in (kept, Path(text).expanduser().absolute()):
        if is_file(path) and (path is not kept or kept.name == text):
            return path
    raise ConfigError(
        f"There is no picture '{text}'.",
        where=field,
        fix="Choose the picture again: it was moved or deleted, or belongs to another computer.",
    )


def keep_drawing(data: DataFolder, background: Path, layers: Sequence[Path]) -> tuple[str, str]:
    """Keep a picture and what was drawn over it as its mask: wherever a layer covers it. Returns both names, "" for no mask.

    Raises: ConfigError: the picture cannot be read.
    """
    mask: Image.Image | None = None
    for path in layers:
        with Image.open(path) as layer:
            drawn = layer.convert("RGBA").getchannel("A")
        mask = drawn if mask is None else ImageChops.lighter(mask, drawn)
    name = _keep(str(background), "init_image", data)
    if mask is None or mask.getbbox() is None:
        return name, ""
    pixels = io.BytesIO()
    mask.save(pixels, format="PNG")
    kept = data.inputs / f"{hashlib.sha256(pixels.getvalue()).hexdigest()[:_DIGITS]}.png"
    if not kept.exists():
        write_bytes(kept, pixels.getvalue(), "the mask")
    return name, kept.name
