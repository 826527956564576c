"""Between a run in memory and its checkpoints."""

from __future__ import annotations

import math
import time
from functools import partial

import torch

from trainer.errors import NonFiniteLossError, RunError
from trainer.events import CheckpointSaved, Warned
from trainer.training.checkpoint import Checkpoint, CheckpointStore, pack_optimizer, unpack_optimizer
from trainer.training.distributed import fingerprint_of
from trainer.training.identity import require_same
from trainer.training.state import TrainParts, TrainState


def checkpoint_store(parts: TrainParts) -> CheckpointStore:
    """Where the run's checkpoints lie."""
    return CheckpointStore(parts.context.run.checkpoints, parts.config.save.keep_checkpoints)


def save_checkpoint(parts: TrainParts, state: TrainState) -> None:
    """Write a checkpoint and say so. Raises NonFiniteLossError, ResourceError."""
    _keep_equal(parts, state)
    parts.ranks.on_main(partial(_save_checkpoint, parts, state))


def _keep_equal(parts: TrainParts, state: TrainState) -> None:
    """See to it that all devices have the weights that are saved. Equal ones always have; others may round differently."""
    if parts.ranks.count == 1 or parts.ranks.all_equal(fingerprint_of(parts.adapter.state_dict())):
        return
    parts.context.emit(
        Warned(
            message=f"After step {state.step} the devices' weights differed in their last bits, as those of unlike devices do. "
            "All go on from the first one's."
        )
    )
    parts.adapter.load_state_dict(parts.ranks.take_mains(parts.adapter.state_dict()))


def _save_checkpoint(parts: TrainParts, state: TrainState) -> None:
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
    """Go on from the newest valid checkpoint, or begin; in all processes from the same.

    Raises: RunError: the settings, pictures or base model are not those of the checkpoint.
    """
    return _require_one_start(parts, _restore(parts))


def _restore(parts: TrainParts) -> TrainState:
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


def _require_one_start(parts: TrainParts, state: TrainState) -> TrainState:
    if parts.ranks.count > 1 and not parts.ranks.all_equal(
        f"{state.step} {fingerprint_of(parts.adapter.state_dict())}"
    ):
        raise RunError(
            "The processes of this run see different checkpoints.",
            where=str(parts.context.run.checkpoints),
            fix="The run must lie on a disk that all machines share; a moment later they may all see the newest.",
        )
    return state
