"""The list of base models, and finding one by its name or path."""

from __future__ import annotations

from pathlib import Path

from trainer.base_models.folders import check_base, describe_folder, weight_file
from trainer.base_models.info import BaseModelInfo
from trainer.errors import ModelFileError
from trainer.paths import ASSETS, DataFolder


def list_base_models(data: DataFolder) -> list[BaseModelInfo]:
    """Those that come with Inkwash, then those in the data folder, each in order of name."""
    found: list[BaseModelInfo] = []
    for root, is_bundled in ((ASSETS / "models", True), (data.models, False)):
        if root.is_dir():
            folders = sorted(entry for entry in root.iterdir() if (entry / "model_index.json").is_file())
            found += [describe_folder(folder, is_bundled=is_bundled) for folder in folders]
    return found


def describe_base(path: Path) -> BaseModelInfo:
    """What is known of the model at `path` without loading it."""
    return describe_folder(path)


def resolve_base(base: str, data: DataFolder) -> Path:
    """The path of a base model, given by its name in the list or by a path, and checked to be whole.

    Raises: ModelFileError: there is none, it is incomplete, or it is of another architecture.
    """
    by_name = {info.name: info.path for info in reversed(list_base_models(data))}
    found = by_name.get(base)
    if found is None:
        path = Path(base).expanduser()
        if path.is_file():
            raise ModelFileError(
                "A base model is a diffusers folder, not a single file.",
                where=str(path),
                fix="Convert the file to a diffusers folder, put that in the models folder, and name it.",
            )
        if not path.is_dir():
            names = ", ".join(sorted(by_name)) or "none"
            raise ModelFileError(
                f"There is no base model '{base}'.",
                fix=f"Choose one of the list ({names}), put a diffusers folder into {data.models}, or give a folder's path.",
            )
        found = path.absolute()
    check_base(found)
    return found


def main_weights(path: Path) -> Path | None:
    """The file that a model is known by in other programs: the UNet's weights of a folder."""
    found = weight_file(path / "unet")
    return found.files[0] if found else None
