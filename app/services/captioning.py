"""Captioners as the Caption section sees them: choices, checks before anything starts, runs and what they said. Knows no widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.download import start_download
from trainer.captioners.job import start_captioning
from trainer.captioners.models import cached_captioners
from trainer.captioners.registry import CAPTIONERS
from trainer.config.caption import NEEDS_MODEL, groups_of
from trainer.config.loading import build_caption_config
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError, DatasetError, Finding
from trainer.paths import DataFolder

PREVIEW_PICTURES = 3


@dataclass(frozen=True)
class Said:
    """What a captioner said of a picture. `thumbnail` is None where the picture is gone."""

    picture: str
    thumbnail: Path | None
    before: str
    caption: str


class CaptioningService:
    """What the Caption section asks and does."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._store = DatasetStore(data)

    def captioners(self) -> list[tuple[str, str]]:
        """(title, name) of each captioner."""
        return [(kind.title, name) for name, kind in CAPTIONERS.items()]

    def models(self, captioner: str) -> list[tuple[str, str]]:
        """(label, id) of the models that are here, then of well-known ones that can be downloaded."""
        if captioner not in NEEDS_MODEL:
            return []
        here = cached_captioners(captioner)
        rest = [name for name in CAPTIONERS[captioner].suggested if name not in here]
        return [(name, name) for name in here] + [(f"{name} (to be downloaded)", name) for name in rest]

    def has_model(self, captioner: str) -> bool:
        """Whether a captioner asks for a model."""
        return captioner != "builtin"

    def can_download(self, captioner: str) -> bool:
        """Whether its models can be downloaded here."""
        return captioner in NEEDS_MODEL

    def settings_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A form's values without those of captioners that are not chosen, which it keeps and does not show."""
        captioner = str(values.get("captioner"))
        shown = {"captioner", "existing", "wording", *groups_of(captioner)}
        if self.has_model(captioner):
            shown.add("model")
        return {name: value for name, value in values.items() if name in shown}

    def faults(self, values: Mapping[str, Any]) -> list[Finding]:
        """What is wrong with the settings, each at its field."""
        try:
            build_caption_config({**self.settings_of(values), "dataset": "any"})
        except ConfigError as error:
            return list(error.findings) or [Finding(error.where, error.message)]
        return []

    def start(self, dataset: str, values: Mapping[str, Any], *, preview: bool) -> str:
        """Begin to caption a data set, or to try it on a few pictures. Returns the run's id.

        Raises: ConfigError: one finding a fault. DatasetError, ModelFileError, ResourceError: as `start_captioning`.
        """
        if not dataset:
            raise DatasetError("No data set is chosen.", fix="Choose one on the left.")
        asked = {**self.settings_of(values), "dataset": dataset, "preview": PREVIEW_PICTURES if preview else 0}
        return start_captioning(self._data, build_caption_config(asked)).id

    def download(self, captioner: str, model: str) -> str:
        """Begin to fetch a captioner's model. Returns the run's id. Raises ConfigError: it is no id."""
        return start_download(self._data, model, "", captioner).id

    def said(self, dataset: str, result: Mapping[str, Any]) -> list[Said]:
        """What a finished run reports of its pictures. Raises DatasetError: the data set is gone."""
        facts = {found.name: found for found in self._store.scan(dataset).pictures}
        return [
            Said(
                entry["picture"],
                self._store.thumbnail(facts[entry["picture"]], 128) if entry["picture"] in facts else None,
                entry["before"],
                entry["caption"],
            )
            for entry in result.get("captions", ())
        ]
