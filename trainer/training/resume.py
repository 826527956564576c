"""Between a run in memory and its checkpoints."""

from __future__ import annotations

import math
import time
from functools import partial

import torch
from torch import Tensor

from trainer.errors import NonFiniteLossError, ResourceError, RunError
from trainer.events import Changed, CheckpointSaved, Warned
from trainer.files import free_bytes
from trainer.resumption import saved_steps
from trainer.training.checkpoint import (
    MARGIN_BYTES,
    Checkpoint,
    CheckpointStore,
    pack_optimizer,
    unpack_optimizer,
)
from trainer.training.distributed import fingerprint_of
from trainer.training.given_up import set_aside
from trainer.training.identity import changes_between, machine_notes, require_same
from trainer.training.state import TrainParts, TrainState
from trainer.training.weight_order import WeightOrder, is_same_order, renumbered, weight_order
from trainer.units import size

_REGROUPED = (
    "The weights are divided into other groups than those that the checkpoint's optimizer worked with: it begins with an empty "
    "memory."
)
_UNKNOWN_AVERAGE = (
    "The checkpoint does not say which weights its averages are of: the average begins with the weights as they are."
)


def checkpoint_store(parts: TrainParts) -> CheckpointStore:
    """Where the run's checkpoints lie."""
    return CheckpointStore(parts.context.run.checkpoints, parts.config.save.keep_checkpoints)


def save_checkpoint(parts: TrainParts, state: TrainState) -> None:
    """Write a checkpoint and say so. Raises NonFiniteLossError, ResourceError."""
    _keep_equal(parts, state)
    # In all processes, which have equal weights: all must go back where one does.
    _require_finite(parts, state)
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


def _require_finite(parts: TrainParts, state: TrainState) -> None:
    weights = parts.adapter.state_dict()
    broken = [name for name, weight in weights.items() if not math.isfinite(float(weight.sum(dtype=torch.float64)))]
    if broken:
        raise NonFiniteLossError(
            f"The weights hold NaN or infinite numbers after step {state.step}: no checkpoint was made of them.",
            where=broken[0],
            fix="Lower the learning rates.",
            step=state.step,
        )


def _save_checkpoint(parts: TrainParts, state: TrainState) -> None:
    parts.context.stage("Saving a checkpoint")
    scaler = parts.accelerator.scaler
    checkpoint = Checkpoint(
        adapter=parts.adapter.state_dict(),
        optimizer=pack_optimizer(parts.optimizer.optimizer),
        state={
            "train_state": state.to_dict(),
            "identity": parts.identity,
            "weights": weight_order(parts.adapter),
            "scaler": scaler.state_dict() if scaler is not None else None,
        },
        average=parts.average.state_dict() if parts.average is not None else {},
    )
    store = checkpoint_store(parts)
    try:
        path = store.save(state.step, checkpoint)
    except ResourceError as error:
        raise _out_of_space(error, parts, state.step) from error
    # From here on the changes that were accepted are the run's own.
    parts.context.run.clear_requests("accept_changes")
    parts.context.emit(CheckpointSaved(step=state.step, path=parts.relative(path)))
    _announce_full_disk(parts, state.step, sum(entry.stat().st_size for entry in path.iterdir()))


def _announce_full_disk(parts: TrainParts, step: int, num_bytes: int) -> None:
    """Say in time that the next checkpoint, or the LoRA files, will not fit."""
    config, folder = parts.config, parts.context.run.folder
    if step == parts.total_steps:
        return
    free, needed = free_bytes(folder), 2 * num_bytes + MARGIN_BYTES
    if free < needed:
        every = config.save.checkpoint_every
        due = min(parts.total_steps, (step // every + 1) * every) if every else parts.total_steps
        parts.context.emit(
            Warned(
                message=f"The disk is nearly full: {size(free)} are free, {size(needed)} are wanted for what is saved next. Free "
                f"some space before step {due}; otherwise the run may stop there, and can be resumed."
            )
        )


def _out_of_space(error: ResourceError, parts: TrainParts, step: int) -> ResourceError:
    kept = saved_steps(parts.context.run)
    again = f"goes on from the checkpoint of step {kept}" if kept else "begins anew"
    return ResourceError(
        f"{error.message} The run stopped after step {step}.",
        where=error.where,
        fix=f"{error.fix} Resumed, it {again}, to the same result.",
        findings=error.findings,
    )


def restore(parts: TrainParts) -> TrainState:
    """Go on from the newest valid checkpoint, or begin; in all processes from the same.

    Raises: ChangedRunError: the settings, pictures or base model are not those of the checkpoint, and the user did not
    say that this is meant. RunError: its weights do not fit.
    """
    return _require_one_start(parts, _restore(parts))


def _restore(parts: TrainParts) -> TrainState:
    checkpoint, damaged = checkpoint_store(parts).newest()
    if checkpoint is None:
        for message in damaged:
            parts.context.emit(Warned(message=f"{message} The run begins anew."))
        return TrainState(started_at=time.time())
    saved = checkpoint.state["identity"]
    changes = require_same(saved, parts.identity, accept=parts.context.run.has_request("accept_changes"))
    state = load_checkpoint(parts, checkpoint)
    for message in damaged:
        parts.context.emit(Warned(message=f"{message} The run goes on from step {state.step}."))
    for message in machine_notes(saved, parts.identity):
        parts.context.emit(Warned(message=message))
    if changes:
        # Made after the checkpoint with the settings of before.
        parts.ranks.on_main(partial(set_aside, parts.context.run, parts.data, state.step))
        parts.context.emit(Changed(step=state.step, changes=[str(change) for change in changes]))
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


def load_checkpoint(parts: TrainParts, checkpoint: Checkpoint) -> TrainState:
    """Put weights, optimizer, average and scaler in a checkpoint's state. Raises RunError where the weights do not fit."""
    state = TrainState.from_dict(checkpoint.state["train_state"])
    parts.adapter.load_state_dict(checkpoint.adapter)
    order = _order_of(parts, checkpoint)
    # Another optimizer, chosen since, begins with an empty memory, and an average that is new with the weights of now.
    keeps = checkpoint.state["identity"]["settings"]["optimizer.name"] == parts.config.optimizer.name
    if keeps and (order is None or not is_same_order(order, weight_order(parts.adapter))):
        parts.context.emit(Warned(message=_REGROUPED))
        keeps = False
    unpack_optimizer(parts.optimizer.optimizer, checkpoint.optimizer if keeps else parts.fresh_optimizer)
    if parts.average is not None:
        parts.average.load_state_dict(_average(parts, checkpoint, order), state.num_updates)
    scaler = parts.accelerator.scaler
    if scaler is not None and checkpoint.state["scaler"]:
        scaler.load_state_dict(checkpoint.state["scaler"])
    return state


def _order_of(parts: TrainParts, checkpoint: Checkpoint) -> WeightOrder | None:
    """Which weights a checkpoint's numbers mean; None where it cannot be known any more."""
    order = checkpoint.state.get("weights")
    if order is not None:
        return order
    # Checkpoints did not always say it. What groups follow from are the adapter's settings.
    changes = changes_between(checkpoint.state["identity"], parts.identity)
    is_known = not any(change.where.startswith("adapter.") for change in changes)
    return weight_order(parts.adapter) if is_known else None


def _average(parts: TrainParts, checkpoint: Checkpoint, order: WeightOrder | None) -> dict[str, Tensor]:
    """A checkpoint's average by the weights' numbers of now; the weights as they are where it has none that is known."""
    if order is None and checkpoint.average:
        parts.context.emit(Warned(message=_UNKNOWN_AVERAGE))
    if order is None or not checkpoint.average:
        return {str(index): weight for index, weight in enumerate(parts.trainable)}
    return renumbered(checkpoint.average, order, weight_order(parts.adapter))
