"""Where a captioner's model lies, and which files it must have. No torch; nothing is downloaded here."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.hub import Wanted, cached_snapshot, cached_snapshots
from trainer.errors import ModelFileError, ResourceError

TAGGER_MODEL, TAGGER_TAGS = "model.onnx", "selected_tags.csv"
_TEXT_PARTS = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True)
class ModelNeeds:
    """What a kind of captioner needs of a model's folder: files by name, or safetensors weights and a `model_type`."""

    title: str
    files: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()

    def problem(self, names: set[str]) -> str:
        """What is missing among a model's files; empty where nothing is."""
        missing = [name for name in self.files if name not in names]
        if missing:
            return f"It lacks {' and '.join(missing)}."
        if self.model_types and not any(name.endswith(".safetensors") for name in names):
            return "It has no .safetensors weights, and nothing else is loaded: other kinds of files can run code."
        return "" if not self.model_types or "config.json" in names else "It lacks config.json."

    def wanted(self) -> Wanted:
        """The files to download: no pickles, no code, no folders of other formats."""
        return Wanted(self.files or _TEXT_PARTS, ("*/*",), self.problem)


NEEDS: dict[str, ModelNeeds] = {
    "tagger": ModelNeeds("WD14-family tagger", files=(TAGGER_MODEL, TAGGER_TAGS)),
    "blip": ModelNeeds("BLIP model", model_types=("blip",)),
    "florence2": ModelNeeds("Florence-2 model", model_types=("florence2",)),
}
"""By captioner."""


def find_model(captioner: str, model: str) -> Path:
    """The folder of a captioner's model: a path, or the id of one in the Hugging Face cache. Never touches the network.

    Raises: ModelFileError: it is not there, or not of that kind.
    """
    needs = NEEDS[captioner]
    folder = Path(model).expanduser()
    if not folder.is_dir():
        try:
            folder = cached_snapshot(model)
        except ModelFileError as error:
            raise ModelFileError(
                f"There is no {needs.title} '{model}': no folder, and not in the Hugging Face cache.",
                fix=f"Download it with `inkwash model download {model} --for {captioner}` or in the Caption section, or give a folder.",
            ) from error
    problem = needs.problem({file.name for file in folder.iterdir()}) or _type_problem(folder, needs)
    if problem:
        raise ModelFileError(f"This is no {needs.title} that can be used. {problem}", where=str(folder))
    return folder


def require_runtime() -> None:
    """Refuse where the library that taggers need is not installed. Raises ResourceError."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ResourceError(
            "Taggers need the library onnxruntime, which is not installed.",
            fix="Install it with `python launch.py --extra tagger`.",
        )


def cached_captioners(captioner: str) -> list[str]:
    """Ids of the models of this kind in the Hugging Face cache. Only names and settings are read."""
    found = []
    for model_id, folder in cached_snapshots():
        needs = NEEDS[captioner]
        if not needs.problem({file.name for file in folder.iterdir()}) and not _type_problem(folder, needs):
            found.append(model_id)
    return found


def _type_problem(folder: Path, needs: ModelNeeds) -> str:
    if not needs.model_types:
        return ""
    found = read_config(folder).get("model_type")
    return "" if found in needs.model_types else f"Its config.json says that it is of the type {found!r}."


def read_config(folder: Path) -> dict[str, Any]:
    """A model's `config.json`; empty where it is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
