"""Asking for pictures: the LoRA library as a stack needs it, checks, and the recipes of pictures made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.services.stack_rows import Found, Row, from_prompt, row_from, row_values, to_prompt
from trainer.base_models import BaseModelInfo, list_base_models
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.errors import ConfigError, Finding, InkwashError, LoraFileError
from trainer.found_recipe import FoundRecipe, read_any_recipe
from trainer.init_pictures import keep_drawing, with_kept_pictures
from trainer.jobs import enqueue
from trainer.library import SUFFIX, LibraryEntry, get_lora, list_loras
from trainer.lora_lookup import find_tags, with_tagged_loras
from trainer.lora_tags import read_tags
from trainer.paths import DataFolder
from trainer.runs import create_run
from trainer.stacks import SavedStack, delete_stack, import_stack, list_stacks, load_stack, save_stack, stack_file
from trainer.upscalers import BUILT_IN, check_upscaler, list_upscalers

_USUAL_STEPS = 20


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

    def upscalers(self) -> list[str]:
        """Names of the ways to enlarge a picture: those that need no file, then the upscaling models there are."""
        return [*BUILT_IN, *(entry.name for entry in list_upscalers(self._data))]

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

    def check(self, values: Mapping[str, Any], stack: Sequence[Row]) -> GenerateConfig:
        """The settings, validated; LoRAs that the prompt names are on the stack, and no longer in the prompt.

        Raises: ConfigError with one finding a fault, such as a LoRA that works and is not in the library.
        """
        prompt = str(values.get("prompt", ""))
        found, findings = self._tags(prompt, values.get("num_inference_steps"))
        if findings:
            raise ConfigError("The prompt has a LoRA tag that cannot be used.", findings=findings)
        rows = from_prompt(stack, found, is_whole=True)
        loras = [self._lora(row) for row in rows]
        words = read_tags(prompt).words
        config = build_generate_config({**values, "prompt": words, "loras": loras})
        check_upscaler(config, self._data)
        return with_kept_pictures(with_tagged_loras(config, self._data), self._data)

    def _lora(self, row: Row) -> dict[str, Any]:
        """A row as StackedLora has it. One that is switched off needs no file."""
        try:
            file = str(get_lora(self._data, str(row["name"])).path)
        except LoraFileError as error:
            if row.get("on", True):
                finding = Finding("loras", f"{error.message} {error.fix}".strip())
                raise ConfigError(error.message, where=finding.where, findings=[finding], fix=error.fix) from error
            file = str(row["name"])
        return {**row_values(row), "file": file}

    def keep_drawing(self, background: Path, layers: Sequence[Path]) -> tuple[str, str]:
        """Keep a picture and the mask drawn over it. Returns their names, "" for no mask. Raises ConfigError."""
        return keep_drawing(self._data, background, layers)

    def rows_of_prompt(self, prompt: str, rows: Sequence[Row], num_steps: Any) -> list[Row]:
        """The stack as the tags of a prompt that is being typed have it."""
        found, findings = self._tags(prompt, num_steps)
        return from_prompt(rows, found, is_whole=not findings)

    def prompt_of_rows(self, prompt: str, rows: Sequence[Row], num_steps: Any, *, is_whole: bool = False) -> str:
        """The prompt with its tags saying what the rows say; where they are all, without the tags of no row."""
        return to_prompt(prompt, rows, self._tags(prompt, num_steps)[0], is_whole=is_whole)

    def _tags(self, prompt: str, num_steps: Any) -> tuple[Found, list[Finding]]:
        if "<" not in prompt:
            return [], []
        steps = int(num_steps) if isinstance(num_steps, int | float) and num_steps >= 1 else _USUAL_STEPS
        found, findings = find_tags(self._data, read_tags(prompt), steps)
        return found, [finding for _, finding in findings]

    def stacks(self) -> list[str]:
        """Names of the saved stacks."""
        return list_stacks(self._data)

    def save_stack(self, name: str, rows: Sequence[Row]) -> str:
        """Save the stack under a name. Returns the name as it was taken. Raises ConfigError."""
        loras = build_generate_config({"loras": [{**row_values(row), "file": row["name"]} for row in rows]}).loras
        return save_stack(self._data, name, loras).stem

    def load_stack(self, name: str) -> SavedStack:
        """A saved stack. Raises ConfigError."""
        return load_stack(self._data, name)

    def import_stack(self, path: Path) -> SavedStack:
        """Take in a shared stack. Raises ConfigError."""
        return import_stack(self._data, path)

    def delete_stack(self, name: str) -> None:
        """Move a saved stack to the trash. Raises ConfigError."""
        delete_stack(self._data, name)

    def stack_file(self, name: str) -> Path:
        """The file of a saved stack, to share. Raises ConfigError."""
        return stack_file(self._data, name)

    def start(self, config: GenerateConfig) -> str:
        """Put a generation in the queue. Returns the run's id."""
        run = create_run(self._data, "generate", config.prompt[:60] or "pictures", config.model_dump(mode="json"))
        enqueue(run, self._data)
        return run.id

    def split(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        """GenerateConfig's plain data as form values, stack, and names of LoRAs that the library lacks."""
        values = {key: value for key, value in settings.items() if key != "loras"}
        stack, missing = [], []
        for entry in settings.get("loras", ()):
            name = self.find_lora(entry["file"])
            if name is None:
                missing.append(Path(entry["file"]).name)
                continue
            stack.append(row_from({**entry, "file": name}))
        return values, stack, missing

    def found_recipe(self, path: Path) -> FoundRecipe:
        """The recipe in a picture of any program, fitted to this library. Raises ConfigError."""
        return read_any_recipe(self._data, path)

    def recipe_or_reason(self, path: Path) -> tuple[FoundRecipe | None, str]:
        """The recipe in a picture, or None and why not."""
        try:
            return self.found_recipe(path), ""
        except InkwashError as error:
            return None, error.message
