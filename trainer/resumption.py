"""Going on with a run: as it was, longer, with changes that are accepted, or with a remedy against NaN.

The command line and the app both ask here; nothing of it needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config.loading import build_config, merge, nest
from trainer.errors import RunError
from trainer.files import write_json
from trainer.jobs import JOBS
from trainer.runs import Run, RunState


@dataclass(frozen=True)
class Resumption:
    """How a run is to go on.

    Attributes:
        steps: its new length; None leaves it as it is.
        on_nan: what is done from now on after NaN or Inf (`training.on_nan`); empty leaves it as it is.
        accepts_changes: go on although settings, pictures or the base model changed.
    """

    steps: int | None = None
    on_nan: str = ""
    accepts_changes: bool = False


def prepare_resumption(run: Run, wish: Resumption) -> None:
    """Note in a run's folder how it is to go on; it is not started yet.

    Raises: RunError: the run works or waits, is of a kind that cannot go on, or has done more steps already.
        ConfigError: its settings cannot be run (any more).
    """
    info, state = run.info(), run.state()
    if info.kind not in JOBS or not JOBS[info.kind].is_resumable:
        raise RunError(f"A run of the kind '{info.kind}' cannot be resumed.", where=run.id, fix="Start a new one.")
    if not state.is_over:
        fix = f"`inkwash jobs --show {run.reference}` says what it does."
        raise RunError("This run is already working or waiting.", where=run.id, fix=fix)
    if not JOBS[info.kind].has_steps and wish != Resumption():
        raise RunError("Only trainings can be made longer or changed.", where=run.id, fix="Resume it as it is.")
    changes: dict[str, Any] = {}
    if wish.steps is not None:
        done = saved_steps(run)
        least = done + 1 if state is RunState.FINISHED else max(done, 1)
        if wish.steps < least:
            raise RunError(
                f"{done} steps of this run are done already.",
                where=run.id,
                fix=f"Ask for {least} steps or more in all.",
            )
        changes["training.steps"] = wish.steps
    if wish.on_nan:
        changes["training.on_nan"] = wish.on_nan
    if changes:
        config = build_config(merge(run.config(), nest(changes)))
        write_json(run.config_path, config.model_dump(mode="json"), "the run's settings")
    if wish.accepts_changes:
        run.request("accept_changes")


def saved_steps(run: Run) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    names = [entry.name for entry in run.checkpoints.glob("step-*")]
    return max((int(number) for name in names if (number := name.removeprefix("step-")).isdecimal()), default=0)
