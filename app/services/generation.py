"""Asking for pictures: the LoRA library as a stack needs it, checks, and the recipes of pictures made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.base_models import BaseModelInfo, list_base_models
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.errors import InkwashError, LoraFileError
from trainer.jobs import enqueue
from trainer.library import SUFFIX, LibraryEntry, get_lora, list_loras
from trainer.paths import DataFolder
from trainer.recipe import read_recipe
from trainer.runs import create_run


class GenerationService:
    """Generation runs of a data folder."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data

    def bases(self) -> list[BaseModelInfo]:
        """The base models there are."""
        return list_base_models(self._data)

    def loras(self) -> list[LibraryEntry]:
        """The library's usable LoRAs, newest first."""
        return [entry for entry in list_loras(self._data) if entry.info is not None]

    def find_lora(self, file: str) -> str | None:
        """The library's name for what a recipe or another tab calls `file`: a name, or a path; None where it has none."""
        entries = list_loras(self._data)
        wanted = file.removesuffix(SUFFIX)
        for entry in entries:
            if entry.name == wanted or str(entry.path) == file:
                return entry.name
        return next((entry.name for entry in entries if Path(entry.name).name == Path(wanted).name), None)

    def trigger_words(self, name: str) -> tuple[str, ...]:
        """The words that call up what the LoRA learned; empty where it is not in the library any more."""
        try:
            return get_lora(self._data, name).trigger_words
        except LoraFileError:
            return ()

    def base_values(self, name: str) -> dict[str, Any]:
        """What choosing a base model sets in the form: the size, steps and guidance that suit it."""
        found = next((info for info in self.bases() if info.name == name), None)
        if found is None:
            return {"base": name}
        return {
            "base": name,
            "width": found.resolution,
            "height": found.resolution,
            "num_inference_steps": found.default_steps,
            "guidance_scale": found.default_guidance,
        }

    def example_prompts(self, name: str) -> tuple[str, ...]:
        """Prompts that the base model knows."""
        return next((info.example_prompts for info in self.bases() if info.name == name), ())

    def check(self, values: Mapping[str, Any], stack: Sequence[Mapping[str, Any]]) -> GenerateConfig:
        """The settings, validated. Raises ConfigError with one finding a fault, LoraFileError."""
        loras = [
            {
                "file": str(get_lora(self._data, str(entry["name"])).path),
                "unet_weight": entry["unet"],
                "text_encoder_weight": entry["text"],
                "is_on": entry["on"],
            }
            for entry in stack
        ]
        return build_generate_config({**values, "loras": loras})

    def start(self, config: GenerateConfig) -> str:
        """Put a generation in the queue. Returns the run's id."""
        run = create_run(self._data, "generate", config.prompt[:60] or "pictures", config.model_dump(mode="json"))
        enqueue(run, self._data)
        return run.id

    def recipe(self, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        """What is in a picture: form values, stack, and names of LoRAs that the library lacks. Raises InkwashError."""
        return self.split(read_recipe(path))

    def split(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        """GenerateConfig's plain data as form values, stack, and names of LoRAs that the library lacks."""
        values = {key: value for key, value in settings.items() if key != "loras"}
        stack, missing = [], []
        for entry in settings.get("loras", ()):
            name = self.find_lora(entry["file"])
            if name is None:
                missing.append(Path(entry["file"]).name)
                continue
            stack.append(
                {
                    "name": name,
                    "unet": entry.get("unet_weight", 1.0),
                    "text": entry.get("text_encoder_weight", 1.0),
                    "on": entry.get("is_on", True),
                }
            )
        return values, stack, missing

    def recipe_or_reason(self, path: Path) -> tuple[dict[str, Any] | None, str]:
        """The settings in a picture, or None and why not."""
        try:
            return read_recipe(path), ""
        except InkwashError as error:
            return None, error.message
