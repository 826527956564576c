"""RunConfig: all that defines a training run. Forms, flags, presets, docs and file metadata derive from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.adapter import AnyAdapter
from trainer.config.base import Settings
from trainer.config.data import DataConfig
from trainer.config.model import ModelConfig
from trainer.config.objective import ObjectiveConfig
from trainer.config.optimizer import OptimizerConfig, ScheduleConfig, optimizer_faults
from trainer.config.training import PreviewConfig, SaveConfig, TrainingConfig, ValidationConfig

SCHEMA_VERSION = 1


class RunConfig(Settings):
    """A training run."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema; older files are converted when they are read."""
    model: ModelConfig = ModelConfig()
    """Base model."""
    data: DataConfig = DataConfig()
    """Data set."""
    adapter: AnyAdapter = AnyAdapter()
    """What is trained."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Noise and loss."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""
    training: TrainingConfig = TrainingConfig()
    """Length and size."""
    validation: ValidationConfig = ValidationConfig()
    """Validation loss."""
    preview: PreviewConfig = PreviewConfig()
    """Sample pictures."""
    save: SaveConfig = SaveConfig()
    """Checkpoints and export."""
    note: Annotated[str, Field(max_length=2000)] = ""
    """Your own words about this run; kept in the run and in the exported file."""

    @model_validator(mode="after")
    def _combinations(self) -> RunConfig:
        faults = list(_impossible(self))
        if faults:
            # One error for all: pydantic reports the faults of a model validator without a path, so each line has its own.
            raise ValueError("\n".join(f"{path}: {message}" for path, message in faults))
        return self


def _impossible(config: RunConfig) -> list[tuple[str, str]]:
    """Combinations of valid settings that cannot be run, as (field path, message with the remedy)."""
    faults: list[tuple[str, str]] = []
    if config.adapter.unet.rank == 0 and config.adapter.text_encoder.rank == 0:
        faults.append(
            ("adapter.unet.rank", "nothing would be trained: give the UNet or the text encoder a rank above 0")
        )
    faults += optimizer_faults(config.optimizer, config.schedule)
    if config.training.ema_decay and config.optimizer.facts.averages:
        faults.append(("training.ema_decay", f"{config.optimizer.facts.title} has an average of its own: set it to 0"))
    if config.objective.min_timestep >= config.objective.max_timestep:
        faults.append(("objective.min_timestep", "must be lower than objective.max_timestep"))
    if config.data.buckets and config.data.bucket_step > config.data.resolution:
        faults.append(("data.bucket_step", "must not be larger than data.resolution"))
    for part in ("unet", "text_encoder"):
        lora = getattr(config.adapter, part)
        if lora.rank and lora.alpha > 8 * lora.rank:
            faults.append(
                (
                    f"adapter.{part}.alpha",
                    f"alpha / rank is {lora.alpha / lora.rank:.0f}, which ends in NaN: use at most 8 × rank",
                )
            )
    if not config.data.use_captions and not (config.data.instance_prompt or config.data.trigger_word):
        faults.append(
            ("data.instance_prompt", "without captions every picture needs it: write one, or turn data.use_captions on")
        )
    return faults
