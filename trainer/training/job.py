"""The training job: what `trainer.worker` calls for a run of the kind "train"."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from trainer.adapters.method import num_kept
from trainer.config.loading import build_config
from trainer.config.run import RunConfig
from trainer.events import Started
from trainer.files import sweep_partial
from trainer.jobs import JobContext
from trainer.models.devices import dtype_name
from trainer.training.averages import weights_in_use
from trainer.training.distributed import Ranks
from trainer.training.export import export_lora, part_paths
from trainer.training.export_word import embedding_path
from trainer.training.joining import joined
from trainer.training.loop import train_loop
from trainer.training.preflight import check_exports
from trainer.training.resume import restore
from trainer.training.setup import set_up


def train(context: JobContext) -> dict[str, Any]:
    """Train, or go on training, the run's LoRA, and export it. Called once in each of the run's processes.

    Returns: run, lora, library_path, embedding where a word was learned, lora_parts (each by
        itself) where two adapters were trained jointly, steps, seconds, validation_loss_first,
        validation_loss_last; where the method has something to say a note, and where layers ended with different ranks those
        by layer.
    Raises: Cancelled: the user stopped it; there is a checkpoint if a step was done. InkwashError: see the message.
    """
    config = build_config(context.run.config())
    with joined(config) as ranks:
        return _train(context, config, ranks)


def _train(context: JobContext, config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    run = context.run
    for folder in (run.checkpoints, run.samples, run.lora) if ranks.is_main else ():
        folder.mkdir(parents=True, exist_ok=True)
        sweep_partial(folder)
    parts = set_up(context, config, run.data_folder(), ranks)
    state = restore(parts)
    context.emit(
        Started(
            pid=os.getpid(),
            device=str(parts.device) if ranks.count == 1 else f"{ranks.count} × {parts.device.type}",
            precision=dtype_name(parts.components.dtype),
            total_steps=parts.total_steps,
            resumed_from=state.step,
        )
    )
    if ranks.is_main:
        check_exports(context, config, num_kept(parts.adapter), parts.total_steps)
    context.stage("Training", state.step, parts.total_steps)
    train_loop(parts, state)
    with weights_in_use(parts):
        exported = ranks.on_main(partial(export_lora, parts, state, is_final=True))
        layer_ranks = {name: module.rank for name, module in parts.adapter.export_modules().items()}
    if exported is None:
        return {}
    path, library_path = exported
    alone = embedding_path(parts, path)
    together = part_paths(parts, path).values()
    note = parts.adapter.outcome()
    return {
        "run": str(run.folder),
        "lora": str(path),
        "library_path": str(library_path),
        **({} if alone is None else {"embedding": str(alone)}),
        **({"lora_parts": [str(each) for each in together]} if together else {}),
        "steps": state.step,
        "seconds": round(state.elapsed_seconds, 3),
        "validation_loss_first": state.validation[0][1],
        "validation_loss_last": state.validation[-1][1],
        **({"note": note} if note else {}),
        **({"ranks": layer_ranks} if len(set(layer_ranks.values())) > 1 else {}),
    }
