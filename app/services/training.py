"""Starting a training run from the form: choices, checks before anything starts, and what the settings amount to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.base_models import BaseModelInfo, list_base_models, resolve_trainable
from trainer.config.adapter import AdapterConfig
from trainer.config.adapter_size import num_parameters
from trainer.config.blocks import choose_layer, part_lora
from trainer.config.loading import Preset, build_config, flatten, list_presets, load_preset
from trainer.config.objective import ObjectiveConfig
from trainer.config.optimizer import missing_part
from trainer.config.run import RunConfig
from trainer.config.targets import is_target
from trainer.dataset.class_words import with_class_words
from trainer.dataset.kohya import kohya_folders
from trainer.dataset.record import CLASS_PICTURES
from trainer.dataset.store import DatasetInfo, DatasetStore
from trainer.errors import ConfigError, DatasetError, Finding, InkwashError, LoraFileError, ModelFileError
from trainer.jobs import enqueue
from trainer.lora_files.header import read_header
from trainer.lora_recipe import training_settings
from trainer.paths import PRESETS, DataFolder
from trainer.runs import create_run
from trainer.timesteps import density
from trainer.units import size

log = logging.getLogger(__name__)

FIRST_PRESET = "embedded-quick"
_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


class TrainingService:
    """Training runs of a data folder."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._datasets = DatasetStore(data)
        self._preset_folders = (PRESETS, data.presets)
        self._shapes: dict[tuple[str, float], list[tuple[str, tuple[int, ...]]]] = {}

    def bases(self) -> list[BaseModelInfo]:
        """The base models there are."""
        return list_base_models(self._data)

    def datasets(self) -> list[DatasetInfo]:
        """The data sets there are."""
        return list(self._datasets.list())

    def presets(self) -> list[Preset]:
        """Bundled presets and the user's own."""
        return list_presets(self._preset_folders)

    def preset_values(self, name: str) -> dict[str, Any]:
        """All settings by dotted path, as the preset sets them. Raises ConfigError."""
        return flatten(build_config(load_preset(name, self._preset_folders)))

    def recipe_values(self, lora: Path) -> dict[str, Any]:
        """All settings by dotted path, as a LoRA was trained with them. Raises LoraFileError, ConfigError."""
        return flatten(build_config(training_settings(lora)))

    def first_values(self) -> dict[str, Any]:
        """What the form shows before anything was chosen: the quick preset on the first data set."""
        names = [preset.name for preset in self.presets()]
        values = self.preset_values(FIRST_PRESET) if FIRST_PRESET in names else flatten(RunConfig())
        datasets = self.datasets()
        if datasets:
            values |= self.dataset_values(datasets[0].name)
        return values

    def dataset_values(self, name: str) -> dict[str, Any]:
        """What choosing a data set sets in the form."""
        try:
            info = self._datasets.get(name)
        except DatasetError:
            return {"data.dataset": name}
        own = ("trigger_word", "repeats", "weight", "instance_prompt")
        return {"data.dataset": name} | {f"data.{key}": getattr(info, key) for key in own}

    def concept_values(self, name: str) -> list[dict[str, Any]]:
        """What adding a data set, or a folder laid out as kohya's scripts want it, adds to the concepts."""
        folders = kohya_folders(Path(name).expanduser())
        if folders:
            return [folder.settings() for folder in folders]
        info = self._datasets.get(name)
        if info.role == CLASS_PICTURES:
            raise DatasetError(
                f"'{info.title}' holds class pictures, nothing to be learned.",
                fix="Choose it in the setting 'Class pictures of your own', or change its role in the Dataset tab.",
            )
        return [{"dataset": name, "trigger_word": "", **info.concept()}]

    def base_values(self, name: str) -> dict[str, Any]:
        """What choosing a base model sets in the form: its own resolution, and bucket sides that go with it."""
        found = next((info for info in self.bases() if info.name == name), None)
        if found is None:
            return {"model.base": name}
        step = 64 if found.resolution >= 512 else max(8, found.resolution // 4 // 8 * 8)
        return {"model.base": name, "data.resolution": found.resolution, "data.bucket_step": step}

    def timestep_shares(self, values: Mapping[str, Any]) -> list[float] | None:
        """How often each fiftieth of the timesteps is trained, or None where the settings of it are not valid."""
        try:
            objective = ObjectiveConfig.model_validate(values.get("objective", {}))
        except ValidationError:
            return None
        return density(objective, 50) if objective.min_timestep < objective.max_timestep else None

    def check(self, values: Mapping[str, Any]) -> tuple[RunConfig | None, list[Finding]]:
        """The settings if they are valid, and everything that keeps them from being run."""
        try:
            config = build_config(with_class_words(values, self._datasets))
        except ConfigError as error:
            return None, list(error.findings) or [Finding(error.where, error.message)]
        problem = missing_part(config.optimizer)
        findings = [Finding("optimizer.name", problem)] if problem else []
        return config, [*findings, *self._dataset_findings(config), *self._base_findings(config)]

    def _dataset_findings(self, config: RunConfig) -> list[Finding]:
        if not config.data.dataset:
            return [Finding("data.dataset", "choose a data set; the Dataset tab makes one of your pictures")]
        chosen = [("data.dataset", config.data.dataset)]
        chosen += [(f"data.concepts.{at}.dataset", each.dataset) for at, each in enumerate(config.data.concepts)]
        chosen += [("data.prior.dataset", config.data.prior.dataset)] if config.data.prior.dataset else []
        return [finding for path, name in chosen for finding in self._findings_of(path, name)]

    def _findings_of(self, path: str, name: str) -> list[Finding]:
        try:
            if not self._datasets.get(name).num_pictures:
                return [Finding(path, f"the data set '{name}' has no pictures that can be used")]
        except InkwashError as error:
            return [Finding(path, error.message)]
        return []

    def _base_findings(self, config: RunConfig) -> list[Finding]:
        known = next((info for info in self.bases() if info.name == config.model.base), None)
        if known is not None:
            return [Finding("model.base", known.training_problem)] if known.training_problem else []
        try:
            resolve_trainable(config.model.base, self._data)
        except ModelFileError as error:
            return [Finding("model.base", error.message)]
        return []

    def start(self, values: Mapping[str, Any]) -> str:
        """Check the settings, make a run of them and put it in the queue. Returns its id.

        Raises: ConfigError: the settings cannot be run; one finding a fault.
        """
        config, findings = self.check(values)
        if config is None or findings:
            raise ConfigError("The training cannot start with these settings.", findings=findings)
        title = config.save.name or Path(config.data.dataset).name or "training"
        run = create_run(self._data, "train", title, config.model_dump(mode="json"))
        enqueue(run, self._data)
        return run.id

    def plan_text(self, config: RunConfig) -> str:
        """What the settings amount to, in one line."""
        try:
            names = [concept.dataset for concept in config.data.all_concepts] if config.data.dataset else []
            counts = [self._datasets.get(name).num_pictures for name in names]
        except InkwashError:
            counts = []
        num_pictures = sum(counts)
        parts = []
        showings = config.training.steps * config.training.global_batch_size * config.training.gradient_accumulation
        if num_pictures:
            epochs = showings / _showings_an_epoch(config, counts)
            concepts = f" of {len(counts)} concepts" if len(counts) > 1 else ""
            parts.append(f"{num_pictures} pictures{concepts}")
            often = "on average " if len(counts) > 1 else ""
            parts.append(
                f"about {_count(epochs)} epochs, each picture shown {often}{_count(showings / num_pictures)} times"
            )
        num_bytes = self.file_bytes(config)
        if num_bytes:
            together = ", with both LoRAs in it" if len(config.adapter.alone) > 1 else ""
            parts.append(f"LoRA file about {size(num_bytes)}{together}")
        elif config.adapter.embedding.num_vectors and not config.adapter.has_lora:
            parts.append("an embedding of a few kB, without a LoRA")
        return " · ".join(parts)

    def file_bytes(self, config: RunConfig) -> int:
        """The size that the LoRA file will have, from the shapes of the base model's layers; 0 where they cannot be read."""
        model = self._base_path(config.model.base)
        total = sum(self._num_parameters(each, model) for each in config.adapter.alone)
        return total * _BYTES[config.save.precision]

    def _num_parameters(self, adapter: AdapterConfig, model: Path) -> int:
        total = 0
        for part in ("unet", "text_encoder", "text_encoder_2"):
            settings = part_lora(adapter, part)
            if not settings.rank:
                continue
            for path, shape in self._layer_shapes(model / part):
                if is_target(part, settings, path, shape):
                    rank = choose_layer(adapter, f"{part}.{path}", shape).rank
                    total += num_parameters(adapter, rank, path, shape) if rank else 0
        return total

    def _base_path(self, base: str) -> Path:
        return next((info.path for info in self.bases() if info.name == base), Path(base).expanduser())

    def _layer_shapes(self, folder: Path) -> list[tuple[str, tuple[int, ...]]]:
        for path in sorted(folder.glob("*.safetensors")):
            key = (str(path), path.stat().st_mtime)
            if key not in self._shapes:
                try:
                    _, entries = read_header(path)
                except (LoraFileError, OSError):
                    log.info("No shapes can be read from %s", path, exc_info=True)
                    return []
                self._shapes[key] = [
                    (name.removesuffix(".weight"), tuple(shape))
                    for name, (_, shape) in entries.items()
                    if name.endswith(".weight") and len(shape) in (2, 4)
                ]
            return self._shapes[key]
        return []


def _showings_an_epoch(config: RunConfig, counts: list[int]) -> int:
    """How many pictures are shown in an epoch, of concepts with these numbers of pictures."""
    repeats = [concept.repeats for concept in config.data.all_concepts]
    shown = [max(counts)] * len(counts) if config.data.balance == "concepts" else counts
    each = sum(count * times for count, times in zip(shown, repeats, strict=True))
    return each * len(config.data.all_resolutions)


def _count(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
