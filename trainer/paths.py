"""Where things lie: the user's data folder and the project's own assets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PROJECT = Path(__file__).resolve().parent.parent
ASSETS = PROJECT / "assets"
PRESETS = PROJECT / "presets"
DATA_VARIABLE = "INKWASH_DATA"


@dataclass(frozen=True)
class DataFolder:
    """The one folder that Inkwash writes to. Its parts are made on first use by whoever writes there."""

    root: Path

    @property
    def runs(self) -> Path:
        """A folder a run (see `trainer.runs`)."""
        return self.root / "runs"

    @property
    def datasets(self) -> Path:
        """A folder a data set that was made in the app."""
        return self.root / "datasets"

    @property
    def loras(self) -> Path:
        """The LoRA library: `.safetensors` files with previews beside them."""
        return self.root / "loras"

    @property
    def stacks(self) -> Path:
        """Saved stacks of LoRAs (JSON)."""
        return self.root / "stacks"

    @property
    def models(self) -> Path:
        """Base models as diffusers folders."""
        return self.root / "models"

    @property
    def upscalers(self) -> Path:
        """Upscaling models for the hires fix (see `trainer.upscalers`)."""
        return self.root / "upscalers"

    @property
    def outputs(self) -> Path:
        """Generated pictures, a folder a day."""
        return self.root / "outputs"

    @property
    def inputs(self) -> Path:
        """Pictures and masks that generations start from, named by what is in them."""
        return self.root / "inputs"

    @property
    def presets(self) -> Path:
        """The user's own presets (TOML)."""
        return self.root / "presets"

    @property
    def cache(self) -> Path:
        """What can be computed again: latents, text embeddings, thumbnails."""
        return self.root / "cache"

    @property
    def trash(self) -> Path:
        """What was deleted in the app, until the user empties it."""
        return self.root / "trash"

    @property
    def logs(self) -> Path:
        """Logs of the UI and of the generation worker."""
        return self.root / "logs"


def data_folder(root: str | Path | None = None) -> DataFolder:
    """The data folder: `root`, or $INKWASH_DATA, or the system's usual place for application data."""
    chosen = root or os.environ.get(DATA_VARIABLE) or platformdirs.user_data_path("inkwash", appauthor=False)
    return DataFolder(Path(chosen).expanduser().absolute())
