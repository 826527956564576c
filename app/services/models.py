"""Base models as the Models tab sees them: the list, what each is, other programs' folders, downloads. Knows no widgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.base_models import FAMILY_FACTS, BaseModelInfo, list_base_models
from trainer.base_models.scan import (
    add_model_folder,
    known_sha256,
    model_folders,
    model_sha256,
    remove_model_folder,
    scan_models,
)
from trainer.config.loading import build_download_config
from trainer.errors import ModelFileError
from trainer.jobs import enqueue
from trainer.paths import DataFolder
from trainer.runs import create_run
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

    def models(self, search: str = "") -> list[BaseModelInfo]:
        """The base models whose name, title, family or path has all words of `search`."""
        words = search.casefold().split()
        return [model for model in list_base_models(self._data) if _has(model, words)]

    def model(self, name: str) -> BaseModelInfo:
        """The model of that name. Raises ModelFileError."""
        found = next((model for model in list_base_models(self._data) if model.name == name), None)
        if found is None:
            raise ModelFileError("This model is not there any more.", where=name, fix="Choose another in the list.")
        return found

    def facts(self, model: BaseModelInfo) -> list[tuple[str, str]]:
        """What is known of a model, for people."""
        rows = [
            ("Family", "" if model.problem else FAMILY_FACTS[model.family].title),
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

    def places(self) -> list[Place]:
        """The folders of other programs."""
        models = list_base_models(self._data)
        return [
            Place(folder, sum(1 for model in models if model.path.is_relative_to(folder)))
            for folder in model_folders(self._data)
        ]

    def add_place(self, folder: str, progress: Progress) -> Place:
        """Use a folder's models in place from now on. Raises ConfigError."""
        path = add_model_folder(self._data, folder)
        scan_models(self._data, progress)
        return next(place for place in self.places() if place.folder == path)

    def remove_place(self, folder: str) -> None:
        """Forget a folder; its files stay. Raises ConfigError."""
        remove_model_folder(self._data, folder)

    def download(self, model_id: str, variant: str) -> str:
        """Start to fetch a model; returns the job's id. Raises ConfigError."""
        config = build_download_config({"model_id": model_id, "variant": variant})
        run = create_run(self._data, "download", config.model_id, config.model_dump(mode="json"))
        enqueue(run, self._data)
        return run.id


def predicts(model: BaseModelInfo) -> str:
    """What a model predicts, in the field's words."""
    kind = {"epsilon": "noise (epsilon)", "v_prediction": "velocity (v)", "": _UNTOLD}[model.traits.prediction_type]
    return f"{kind}, zero terminal SNR" if model.traits.zero_terminal_snr else kind


def _has(model: BaseModelInfo, words: list[str]) -> bool:
    text = f"{model.name} {model.title} {FAMILY_FACTS[model.family].title} {model.path}".casefold()
    return all(word in text for word in words)
