"""The list of base models, and finding one by its name, path or hub id."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from trainer.base_models.checkpoints import check_checkpoint, describe_checkpoint, file_fingerprint, is_checkpoint
from trainer.base_models.folders import check_base, describe_folder, folder_fingerprint, weight_file
from trainer.base_models.hub import cached_models, cached_snapshot
from trainer.base_models.info import INPAINTING_PROBLEM, BaseModelInfo
from trainer.base_models.scan import scan_models
from trainer.errors import ModelFileError
from trainer.files import is_file, is_folder
from trainer.paths import ASSETS, DataFolder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def list_base_models(data: DataFolder) -> list[BaseModelInfo]:
    """Those that come with Inkwash, in the data folder, in the user's own model folders, and in the Hugging Face cache."""
    bundled = ASSETS / "models"
    folders = sorted(entry for entry in bundled.iterdir() if (entry / "model_index.json").is_file())
    models = [*(describe_folder(folder, is_bundled=True) for folder in folders), *scan_models(data), *cached_models()]
    # Of two of the same name the second goes by its path.
    seen: set[str] = set()
    for index, model in enumerate(models):
        if model.name in seen:
            models[index] = replace(model, name=str(model.path))
        seen.add(model.name)
    return models


def describe_base(path: Path) -> BaseModelInfo:
    """What is known of the model at `path` without loading it."""
    return describe_checkpoint(path) if path.is_file() else describe_folder(path)


def resolve_base(base: str, data: DataFolder, *, has_vae: bool = False) -> Path:
    """The path of a base model, checked to be whole.

    Args:
        base: a name in the list, a path, or the id of a model in the Hugging Face cache.
        data: the data folder.
        has_vae: whether the VAE comes from elsewhere, so that a file without one will do.

    Raises: ModelFileError: there is none, it is incomplete, or it is of another architecture.
    """
    found = find_base(base, data)
    if found.is_file():
        check_checkpoint(found, has_vae=has_vae)
    else:
        check_base(found)
    return found


def resolve_trainable(base: str, data: DataFolder, *, has_vae: bool = False) -> Path:
    """As `resolve_base`, and refused where it can only make pictures. Raises ModelFileError."""
    found = resolve_base(base, data, has_vae=has_vae)
    if describe_base(found).traits.is_inpainting:
        raise ModelFileError(INPAINTING_PROBLEM, where=str(found), fix="Choose a text-to-image model (model.base).")
    return found


def find_base(base: str, data: DataFolder) -> Path:
    """Like `resolve_base`, without checking that it is whole."""
    path = Path(base).expanduser()
    if path.is_absolute() and (is_folder(path) or is_checkpoint(path)):
        # Without looking through all folders first.
        return path
    by_name = {info.name: info.path for info in reversed(list_base_models(data))}
    if base in by_name:
        return by_name[base]
    if is_folder(path) or is_checkpoint(path):
        return path.absolute()
    if is_file(path):
        raise ModelFileError(
            "This file is no base model.",
            where=str(path),
            fix="Choose a .safetensors or .ckpt file, or a diffusers folder.",
        )
    if _HUB_ID.fullmatch(base):
        return cached_snapshot(base)
    names = ", ".join(sorted(by_name)) or "none"
    raise ModelFileError(
        f"There is no base model '{base}'.",
        fix=f"Choose one of the list ({names}), put one into {data.models}, or give a path.",
    )


def resolve_vae(vae: str) -> Path:
    """The path of a VAE alone: a file, or a diffusers folder of one. Raises ModelFileError."""
    path = Path(vae).expanduser().absolute()
    if is_file(path / "vae" / "config.json"):
        path = path / "vae"
    if is_checkpoint(path) or is_file(path / "config.json"):
        return path
    raise ModelFileError(
        f"There is no VAE '{vae}'.",
        where="model.vae",
        fix="Give the path of a .safetensors file or of a diffusers folder.",
    )


def fingerprint(path: Path, part: str) -> str:
    """A key for caches that changes with a part's weights or configuration; a folder may be the part itself."""
    if path.is_file():
        return file_fingerprint(path, part)
    return folder_fingerprint(path / part if (path / part).is_dir() else path)


def main_weights(path: Path) -> Path | None:
    """The file that a model is known by in other programs: itself, or the UNet's weights of a folder."""
    if path.is_file():
        return path
    found = weight_file(path / "unet")
    return found.files[0] if found else None
