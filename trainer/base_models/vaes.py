"""VAEs on this computer, by the name and the hash that a picture's recipe has of one. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.base_models.listing import resolve_vae
from trainer.base_models.scan import known_files, model_folders, model_sha256
from trainer.errors import ModelFileError
from trainer.paths import DataFolder

# Where A1111, Forge and ComfyUI keep them, below the folder that they are installed in.
_PLACES = ("models/VAE", "models/vae")


def find_vae(data: DataFolder, name: str, digest: str = "") -> tuple[Path | None, str]:
    """The VAE that a recipe names, and a sentence where it is not quite that, or not here.

    It is looked for among the files that were hashed or listed here before, wherever they lie, and in the model folders.

    Args:
        name: of the file or folder, without the folders that it lies in.
        digest: the beginning of its SHA-256, at least 8 digits; without it the name decides.
    """
    known = known_files(data)
    start = digest.casefold() if len(digest) >= 8 else ""
    for path, sha256 in known.items():
        if start and sha256.startswith(start):
            return path, ""
    named = [path for path in _named(data, name, list(known)) if _is_vae(path)]
    for path in named:
        if not start or (path.is_file() and model_sha256(data, path).startswith(start)):
            return path, ""
    if named:
        return named[0], f"The VAE '{named[0].name}' is another version than the one that was used."
    return None, f"The VAE '{name}' is not on this computer, or not in a folder of models: choose it in the settings."


def _named(data: DataFolder, name: str, known: list[Path]) -> Iterator[Path]:
    """What is called so, with the suffix or without."""
    wanted = name.casefold()
    yield from (path for path in known if wanted in (path.name.casefold(), path.stem.casefold()))
    for root in (data.models, *(folder / place for folder in model_folders(data) for place in ("", *_PLACES))):
        try:
            yield from (path for path in root.iterdir() if wanted in (path.name.casefold(), path.stem.casefold()))
        except OSError:
            continue


def _is_vae(path: Path) -> bool:
    try:
        resolve_vae(str(path))
    except ModelFileError:
        return False
    return not (path / "model_index.json").is_file()
