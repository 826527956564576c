"""The training job: what `trainer.worker` calls for a run of the kind "train"."""

from __future__ import annotations

import os
from typing import Any

from trainer.config.loading import build_config
from trainer.events import Started
from trainer.files import sweep_partial
from trainer.jobs import JobContext
from trainer.models.devices import dtype_name
from trainer.training.averages import weights_in_use
from trainer.training.export import export_lora
from trainer.training.loop import train_loop
from trainer.training.resume import restore
from trainer.training.setup import set_up


def train(context: JobContext) -> dict[str, Any]:
    """Train, or go on training, the run's LoRA, and export it.

    Returns: run, lora, library_path, steps, seconds, validation_loss_first, validation_loss_last; where the method has
        something to say a note, and where layers ended with different ranks those by layer.
    Raises: Cancelled: the user stopped it; there is a checkpoint if a step was done. InkwashError: see the message.
    """
    run = context.run
    for folder in (run.checkpoints, run.samples, run.lora):
        folder.mkdir(parents=True, exist_ok=True)
        sweep_partial(folder)
    parts = set_up(context, build_config(run.config()), run.data_folder())
    state = restore(parts)
    context.emit(
        Started(
            pid=os.getpid(),
            device=str(parts.device),
            precision=dtype_name(parts.components.dtype),
            total_steps=parts.total_steps,
            resumed_from=state.step,
        )
    )
    context.stage("Training", state.step, parts.total_steps)
    train_loop(parts, state)
    with weights_in_use(parts):
        path, library_path = export_lora(parts, state, is_final=True)
        ranks = {name: module.rank for name, module in parts.adapter.export_modules().items()}
    note = parts.adapter.outcome()
    return {
        "run": str(run.folder),
        "lora": str(path),
        "library_path": str(library_path),
        "steps": state.step,
        "seconds": round(state.elapsed_seconds, 3),
        "validation_loss_first": state.validation[0][1],
        "validation_loss_last": state.validation[-1][1],
        **({"note": note} if note else {}),
        **({"ranks": ranks} if len(set(ranks.values())) > 1 else {}),
    }
