"""Base models as the Models tab sees them: the list, what each is, other programs' folders, downloads. Knows no widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.base_models import BaseModelInfo, list_base_models
from trainer.base_models.download import start_download
from trainer.base_models.scan import (
    add_model_folder,
    known_sha256,
    model_folders,
    model_sha256,
    remove_model_folder,
    scan_models,
)
from trainer.errors import ModelFileError
from trainer.paths import DataFolder
from trainer.units import size

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""
_UNTOLD = "told when it is loaded"


@dataclass(frozen=True)
class Place:
    """A folder of another program, and how many models were found in it."""

    folder: Path
    count: int


class ModelService:
    """What the Models tab asks and does."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data

    def overview(self, search: str = "") -> tuple[list[BaseModelInfo], list[Place]]:
        """The base models whose name, title, family or path has all words of `search`; and other programs' folders.

        One look at the disk for both: folders hold thousands of files.
        """
        models, words = list_base_models(self._data), search.casefold().split()
        places = [Place(folder, _count_below(folder, models)) for folder in model_folders(self._data)]
        return [model for model in models if _has(model, words)], places

    def model(self, name: str) -> BaseModelInfo:
        """The model of that name. Raises ModelFileError."""
        found = next((model for model in list_base_models(self._data) if model.name == name), None)
        if found is None:
            raise ModelFileError("This model is not there any more.", where=name, fix="Choose another in the list.")
        return found

    def facts(self, model: BaseModelInfo) -> list[tuple[str, str]]:
        """What is known of a model, for people."""
        rows = [
            ("Family", "" if model.problem else model.kind),
            ("Predicts", "" if model.problem else predicts(model)),
            ("Made for", "" if model.problem else f"{model.resolution} pixels a side"),
            ("Precision", model.precision),
            ("Size", size(model.size_bytes)),
            ("SHA-256", known_sha256(self._data, model.path) if model.path.is_file() else ""),
            ("Licence", model.license),
            ("Lies in", str(model.path)),
        ]
        return [(name, value) for name, value in rows if value]

    def has_hash(self, model: BaseModelInfo) -> bool:
        """Whether its hash is known, or it has none: a folder is many files."""
        return not model.path.is_file() or bool(known_sha256(self._data, model.path))

    def compute_hash(self, model: BaseModelInfo, progress: Progress) -> str:
        """Its SHA-256, by which download sites and other programs know it."""
        return model_sha256(self._data, model.path, progress)

    def add_place(self, folder: str, progress: Progress) -> Place:
        """Use a folder's models in place from now on. Raises ConfigError."""
        path = add_model_folder(self._data, folder)
        return Place(path, _count_below(path, scan_models(self._data, progress)))

    def remove_place(self, folder: str) -> None:
        """Forget a folder; its files stay. Raises ConfigError."""
        remove_model_folder(self._data, folder)

    def download(self, model_id: str, variant: str) -> str:
        """Start to fetch a model; returns the job's id. Raises ConfigError."""
        return start_download(self._data, model_id, variant).id


def predicts(model: BaseModelInfo) -> str:
    """What a model predicts, in the field's words."""
    kind = {"epsilon": "noise (epsilon)", "v_prediction": "velocity (v)", "": _UNTOLD}[model.traits.prediction_type]
    return f"{kind}, zero terminal SNR" if model.traits.zero_terminal_snr else kind


def _count_below(folder: Path, models: list[BaseModelInfo]) -> int:
    return sum(model.path.is_relative_to(folder) for model in models)


def _has(model: BaseModelInfo, words: list[str]) -> bool:
    text = f"{model.name} {model.title} {model.kind} {model.path}".casefold()
    return all(word in text for word in words)
