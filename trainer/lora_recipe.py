"""The settings that a LoRA was trained with, out of its file, and what of them this computer lacks. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.base_models import resolve_trainable
from trainer.config.run import RunConfig
from trainer.dataset.catalog import DatasetCatalog
from trainer.errors import ConfigError, Finding, InkwashError
from trainer.lora_files.header import read_header
from trainer.lora_files.metadata import config_from_metadata
from trainer.paths import DataFolder


def training_settings(lora: Path) -> dict[str, Any]:
    """Settings to train again with: a nested dict, not yet validated; data set and base model by name only.

    Raises: LoraFileError: the file cannot be read, or carries no settings. ConfigError: they are of a newer Inkwash.
    """
    metadata, _ = read_header(lora)
    try:
        return config_from_metadata(metadata)
    except InkwashError as error:
        error.where = error.where or str(lora)
        raise


def require_parts(config: RunConfig, data: DataFolder) -> None:
    """Raise ConfigError where this computer has not the data set or the base model that settings from elsewhere name."""
    missing: list[Finding] = []
    named = {"data.dataset": config.data.dataset}
    named |= {f"data.concepts.{at}.dataset": concept.dataset for at, concept in enumerate(config.data.concepts)}
    named |= {"data.prior.dataset": config.data.prior.dataset} if config.data.prior.dataset else {}
    for path, name in named.items():
        try:
            DatasetCatalog(data).get(name)
        except InkwashError as error:
            missing.append(Finding(path, error.message))
    try:
        resolve_trainable(config.model.base, data)
    except InkwashError as error:
        missing.append(Finding("model.base", error.message))
    if missing:
        raise ConfigError(
            "This LoRA was trained with something that is not on this computer.",
            fix="Name your own: --dataset FOLDER, --model.base MODEL.",
            findings=missing,
        )
