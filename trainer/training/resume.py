"""Between a run in memory and its checkpoints."""

from __future__ import annotations

import math
import time

import torch

from trainer.errors import NonFiniteLossError
from trainer.events import CheckpointSaved, Warned
from trainer.training.checkpoint import Checkpoint, CheckpointStore, pack_optimizer, unpack_optimizer
from trainer.training.identity import require_same
from trainer.training.state import TrainParts, TrainState


def checkpoint_store(parts: TrainParts) -> CheckpointStore:
    """Where the run's checkpoints lie."""
    return CheckpointStore(parts.context.run.checkpoints, parts.config.save.keep_checkpoints)


def save_checkpoint(parts: TrainParts, state: TrainState) -> None:
    """Write a checkpoint and say so. Raises NonFiniteLossError, ResourceError."""
    parts.context.stage("Saving a checkpoint")
    weights = parts.adapter.state_dict()
    broken = [name for name, weight in weights.items() if not math.isfinite(float(weight.sum(dtype=torch.float64)))]
    if broken:
        raise NonFiniteLossError(
            f"The weights hold NaN or infinite numbers after step {state.step}: no checkpoint was made of them.",
            where=broken[0],
            fix="Lower the learning rates and start a new run; the last checkpoint is from before the fault.",
        )
    scaler = parts.accelerator.scaler
    checkpoint = Checkpoint(
        adapter=weights,
        optimizer=pack_optimizer(parts.optimizer.optimizer),
        state={
            "train_state": state.to_dict(),
            "identity": parts.identity,
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
        average=parts.average.state_dict() if parts.average is not None else {},
    )
    path = checkpoint_store(parts).save(state.step, checkpoint)
    parts.context.emit(CheckpointSaved(step=state.step, path=parts.relative(path)))


def restore(parts: TrainParts) -> TrainState:
    """Go on from the newest valid checkpoint, or begin.

    Raises: RunError: the settings, pictures or base model are not those of the checkpoint.
    """
    checkpoint, damaged = checkpoint_store(parts).newest()
    if checkpoint is None:
        for message in damaged:
            parts.context.emit(Warned(message=f"{message} The run begins anew."))
        return TrainState(started_at=time.time())
    notes = require_same(checkpoint.state["identity"], parts.identity)
    state = TrainState.from_dict(checkpoint.state["train_state"])
    for message in damaged:
        parts.context.emit(Warned(message=f"{message} The run goes on from step {state.step}."))
    for message in notes:
        parts.context.emit(Warned(message=message))
    parts.adapter.load_state_dict(checkpoint.adapter)
    unpack_optimizer(parts.optimizer.optimizer, checkpoint.optimizer)
    if parts.average is not None:
        parts.average.load_state_dict(checkpoint.average, state.step)
    if parts.accelerator.scaler is not None and checkpoint.state["scaler"]:
        parts.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    return state
