"""What changes while a run trains, and what all its parts are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from trainer.adapters.method import AdapterMethod
from trainer.config.run import RunConfig
from trainer.data.batches import BatchMaker
from trainer.data.examples import Split
from trainer.data.latents import LatentCache
from trainer.data.texts import Texts
from trainer.jobs import JobContext
from trainer.models.components import Components
from trainer.objectives.diffusion import PredictionType
from trainer.optimizers.average import WeightAverage
from trainer.paths import DataFolder
from trainer.training.distributed import Ranks
from trainer.training.fused import FusedBackward
from trainer.training.underneath import FrozenLora


@dataclass
class TrainState:
    """All that a resumed run must know besides weights: random numbers follow from the step (trainer.data.randomness).

    `elapsed_seconds` counts training over all processes of the run; `started_at` is when the first one began.
    """

    step: int = 0
    elapsed_seconds: float = 0.0
    started_at: float = 0.0
    validation: list[tuple[int, float]] = field(default_factory=list)
    remedies: Remedies = field(default_factory=lambda: Remedies())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "step": self.step,
            "elapsed_seconds": self.elapsed_seconds,
            "started_at": self.started_at,
            "validation": self.validation,
            "remedies": asdict(self.remedies),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainState:
        """The state of `to_dict`."""
        return cls(
            step=int(data["step"]),
            elapsed_seconds=float(data["elapsed_seconds"]),
            started_at=float(data["started_at"]),
            validation=[(int(step), float(loss)) for step, loss in data["validation"]],
            remedies=Remedies(**data.get("remedies", {})),
        )

    @property
    def num_updates(self) -> int:
        """How many of the steps changed the weights."""
        return self.step - sum(1 for step in self.remedies.skipped if step <= self.step)

    def go_back_to(self, earlier: TrainState) -> None:
        """Become an earlier state of the run; the time that was spent since is not taken back."""
        self.step, self.validation, self.remedies = earlier.step, earlier.validation, earlier.remedies


@dataclass(frozen=True)
class Remedies:
    """What was done after NaN or Inf, and holds from then on: a part of the state, so that a resumed run does the same.

    Attributes:
        count: how often something was done in a row by the same setting of `training.on_nan`.
        action: that setting.
        rate_factor: what all learning rates are multiplied with.
        skipped: steps that change nothing.
        back_to: the step of the checkpoint that was gone back to last; -1 if none was.
    """

    count: int = 0
    action: str = ""
    rate_factor: float = 1.0
    skipped: list[int] = field(default_factory=list)
    back_to: int = -1


@dataclass(frozen=True)
class NoiseSchedule:
    """The base model's diffusion: products of 1 - beta `(num_timesteps,)`, and what the UNet predicts."""

    alphas_cumprod: Tensor
    prediction_type: PredictionType


@dataclass
class TrainParts:
    """A run, set up: everything that the loop works with.

    Attributes:
        average: of the trained weights, where the settings ask for one.
        ranks: the processes that train together.
        start: the adapter's state with which the model is the base model, where the base model's predictions are needed.
        frozen: the LoRAs under the adapter, merged into the model.
        fused: updates the weights within the backward pass, where the settings ask for it.
        fresh_optimizer: the optimizer's state before the first step (`pack_optimizer`).
    """

    context: JobContext
    config: RunConfig
    data: DataFolder
    components: Components
    adapter: AdapterMethod
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    noise_schedule: NoiseSchedule
    split: Split
    batches: BatchMaker
    class_batches: BatchMaker | None
    texts: Texts
    latents: LatentCache
    name: str
    dataset_name: str
    identity: dict[str, Any]
    average: WeightAverage | None = None
    start: dict[str, Tensor] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    frozen: tuple[FrozenLora, ...] = ()
    fused: FusedBackward | None = None
    fresh_optimizer: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        """Weight updates in all."""
        return self.config.training.steps

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.components.device

    @cached_property
    def groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """The adapter's groups of weights. Found once: each layer's rate is looked up in all lines of `adapter.blocks`."""
        return self.adapter.parameter_groups()

    @cached_property
    def trainable(self) -> list[torch.nn.Parameter]:
        """All trained weights."""
        return [weight for weights in self.groups.values() for weight in weights]

    def epoch_at(self, step: int) -> float:
        """Epochs done after `step` updates."""
        return step * self.config.training.gradient_accumulation / self.batches.order.batches_per_epoch

    def relative(self, path: Path) -> str:
        """`path` relative to the run's folder, for events."""
        return path.relative_to(self.context.run.folder).as_posix()
