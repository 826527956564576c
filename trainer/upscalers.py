"""Upscaling models, as files: where they lie, and which one a name means; and starting a job that uses one alone. No torch.

They are found in the data folder's `upscalers/`, and in the folders of other programs that the user added for their base models.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from trainer.base_models.scan import model_folders
from trainer.config.generate import GenerateConfig, UpscalerName
from trainer.config.upscale import UpscaleConfig
from trainer.errors import ConfigError, Finding, ResourceError
from trainer.files import TEMPORARY_PREFIX, is_file
from trainer.jobs import enqueue
from trainer.paths import DataFolder
from trainer.runs import Run, create_run

BUILT_IN: tuple[str, ...] = get_args(UpscalerName)
"""The ways to enlarge a picture that need no file."""
SUFFIXES = (".safetensors", ".pth")
EXTRA = "python launch.py --extra upscale"
# Where A1111, Forge and ComfyUI keep them, below the folder that they are installed in.
_PLACES = (
    "models/ESRGAN", "models/RealESRGAN", "models/SwinIR", "models/DAT", "models/HAT", "models/ScuNET",
    "models/upscale_models",
)  # fmt: skip
# What A1111 and Forge call the published files of Real-ESRGAN.
_FILES = {
    "r-esrgan 4x+": "realesrgan_x4plus",
    "r-esrgan 4x+ anime6b": "realesrgan_x4plus_anime_6b",
    "r-esrgan 2x+": "realesrgan_x2plus",
    "r-esrgan general 4xv3": "realesr-general-x4v3",
    "r-esrgan general wdn 4xv3": "realesr-general-wdn-x4v3",
    "r-esrgan animevideo": "realesr-animevideov3",
}


@dataclass(frozen=True)
class UpscalerFile:
    """A file that may be an upscaling model; it is looked into when it is used. `name` is its path there, without suffix."""

    name: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """Its size; 0 where it has gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def list_upscalers(data: DataFolder) -> list[UpscalerFile]:
    """All of them, those of the data folder first; of two of the same name the second goes by its whole path."""
    found: dict[str, UpscalerFile] = {}
    for root in (data.upscalers, *(folder / place for folder in model_folders(data) for place in _PLACES)):
        for path in _files_below(root):
            name = path.relative_to(root).with_suffix("").as_posix()
            is_taken = name in found or name.casefold() in BUILT_IN
            found.setdefault(str(path) if is_taken else name, UpscalerFile(str(path) if is_taken else name, path))
    return list(found.values())


def match_upscaler(data: DataFolder, name: str) -> UpscalerFile | None:
    """The listed file that a name means: as it is, else without regard to case, folder and suffix; None for none."""
    listed = list_upscalers(data)
    for entry in listed:
        if name in (entry.name, str(entry.path)):
            return entry
    wanted = _plain(name)  # also by the name that A1111 and Forge show
    return next((entry for entry in listed if _plain(entry.name) == wanted), None)


def resolve_upscaler(data: DataFolder, name: str, where: str = "hires_upscaler") -> Path | None:
    """The file of an upscaler, by its name in the list or its path; None for the built-in ones. Raises ConfigError, at the field `where`."""
    if name in BUILT_IN:
        return None
    path = Path(name).expanduser()
    if path.is_absolute() and is_file(path) and path.suffix.lower() in SUFFIXES:
        return path
    if found := match_upscaler(data, name):
        return found.path
    names = ", ".join([*BUILT_IN, *(entry.name for entry in list_upscalers(data))])
    raise ConfigError(
        f"There is no upscaler '{name}'.",
        where=where,
        fix=f"Choose one of: {names}; or put its file (.safetensors or .pth) into {data.upscalers}.",
    )


def check_upscaler(config: GenerateConfig, data: DataFolder) -> Path | None:
    """The file that the hires fix of these settings uses; None where it uses none.

    Raises: ConfigError: there is no such upscaler. ResourceError: the library that runs it is not installed.
    """
    if config.hires_scale == 1:
        return None
    path = resolve_upscaler(data, config.hires_upscaler)
    if path is not None:
        _require_library("hires_upscaler", f", or choose one of: {', '.join(BUILT_IN)}")
    return path


def require_upscaler(data: DataFolder, name: str) -> Path:
    """The file of an upscaling model. Raises as `check_upscaler`, also for the ways to enlarge that are none."""
    path = resolve_upscaler(data, name, "upscaler")
    if path is None:
        names = ", ".join(entry.name for entry in list_upscalers(data)) or f"none yet; put one into {data.upscalers}"
        raise ConfigError(f"'{name}' is no upscaling model.", where="upscaler", fix=f"Choose one of: {names}.")
    _require_library("upscaler")
    return path


def start_upscaling(data: DataFolder, config: UpscaleConfig) -> Run:
    """Put the enlarging of pictures into the queue.

    Raises: ConfigError: a picture or the model is not there. ResourceError: the library that runs it is not installed.
    """
    require_upscaler(data, config.upscaler)
    paths = [Path(picture).expanduser().absolute() for picture in config.pictures]
    missing = [Finding("pictures", f"there is no file {path}") for path in paths if not path.is_file()]
    if missing:
        raise ConfigError("Some pictures are not there.", where="pictures", findings=missing)
    kept = config.model_copy(update={"pictures": [str(path) for path in paths]})
    title = paths[0].name if len(paths) == 1 else f"{len(paths)} pictures"
    run = create_run(data, "upscale", f"{title} by {config.upscaler}"[:60], kept.model_dump(mode="json"))
    enqueue(run, data)
    return run


def _require_library(where: str, otherwise: str = "") -> None:
    if importlib.util.find_spec("spandrel") is None:
        raise ResourceError(
            "Upscaling models need the library spandrel, which is not installed.",
            where=where,
            fix=f"Install it with `{EXTRA}`{otherwise}.",
        )


def _files_below(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        return
    for path in sorted(root.rglob("*"), key=lambda entry: entry.as_posix().casefold()):
        hidden = any(part.startswith((".", TEMPORARY_PREFIX)) for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _plain(name: str) -> str:
    """A name as two programs have in common: `ESRGAN/4x-UltraSharp.pth` is `4x ultrasharp`."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip().casefold()
    last = next((last.removesuffix(suffix) for suffix in SUFFIXES if last.endswith(suffix)), last)
    return re.sub(r"[\s_-]+", " ", _FILES.get(last, last))
