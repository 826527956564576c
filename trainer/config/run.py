"""RunConfig: all that defines a training run. Forms, flags, presets, docs and file metadata derive from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.adapter import PLAIN, AdapterConfig
from trainer.config.adapter_faults import adapter_faults
from trainer.config.base import Settings
from trainer.config.data import DataConfig, data_faults
from trainer.config.embedding import embedding_faults
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
    adapter: AdapterConfig = AdapterConfig()
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
    faults = [*adapter_faults(config.adapter), *optimizer_faults(config.optimizer, config.schedule)]
    faults += [*_averages(config), *_fused_backward(config)]
    faults += embedding_faults(config.adapter.embedding, config.data.trigger_word, has_lora=config.adapter.has_lora)
    if config.save.export_sum and not config.adapter.on_top_of:
        faults.append(
            ("save.export_sum", "there is nothing to add up: name LoRAs in adapter.on_top_of, or turn it off")
        )
    if config.save.export_sum and config.adapter.method not in (*PLAIN, "adalora"):
        faults.append(("save.export_sum", "only changes of low rank add up to a LoRA: choose the method lora"))
    if config.adapter.on_top_of and config.model.quantization != "none":
        faults.append(
            (
                "adapter.on_top_of",
                "LoRAs cannot be merged into packed weights: set model.quantization to none, or leave them off",
            )
        )
    if config.objective.min_timestep >= config.objective.max_timestep:
        faults.append(("objective.min_timestep", "must be lower than objective.max_timestep"))
    faults += data_faults(config.data)
    return faults


def _averages(config: RunConfig) -> list[tuple[str, str]]:
    """What an optimizer with its own rate or average, or an average of the weights, does not go together with."""
    facts, faults = config.optimizer.facts, list[tuple[str, str]]()
    if config.training.ema_decay and facts.averages:
        faults.append(("training.ema_decay", f"{facts.title} has an average of its own: set it to 0"))
    if config.adapter.method == "adalora" and (config.training.ema_decay or facts.averages):
        field = "training.ema_decay" if config.training.ema_decay else "optimizer.name"
        faults.append((field, "AdaLoRA takes ranks away that an average would keep: use none with it"))
    if any(each.method == "loraplus" for each in config.adapter.alone) and facts.finds_rate:
        faults.append(("optimizer.name", f"{facts.title} finds one rate for all, and LoRA+ needs two: choose another"))
    if config.adapter.has_rates and facts.finds_rate:
        message = (
            f"{facts.title} finds one rate for all: choose another optimizer, or let blocks have the rates 0 or 1 only"
        )
        first = "adapter.blocks" if config.adapter.blocks else "adapter.block_rates"
        faults.append((first if config.adapter.alone[0].has_rates else "adapter.joint.rate", message))
    return faults


def _fused_backward(config: RunConfig) -> list[tuple[str, str]]:
    """What needs all gradients of a step at once, or more than one backward pass for an update."""
    if not config.training.fused_backward:
        return []
    facts, fused = config.optimizer.facts, "training.fused_backward updates each weight alone: "
    needs = {
        "training.max_grad_norm": config.training.max_grad_norm > 0 and "set it to 0",
        "training.gradient_accumulation": config.training.gradient_accumulation > 1 and "set it to 1",
        "training.num_devices": config.training.num_devices > 1 and "set it to 1",
        "data.prior.class_prompt": config.data.prior.class_prompt and "leave it empty",
        "adapter.method": config.adapter.method == "adalora" and "AdaLoRA weighs them against each other, choose another",
        "optimizer.name": (facts.averages or facts.finds_rate) and f"{facts.title} has numbers for all of them, choose another",
        "model.precision": config.model.precision == "fp16" and "fp16 scales the whole gradient, choose bf16 or fp32",
    }  # fmt: skip
    return [(field, fused + remedy) for field, remedy in needs.items() if remedy]
