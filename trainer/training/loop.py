"""The training loop, to be read from top to bottom."""

from __future__ import annotations

import time
from functools import partial

from trainer.adapters.method import end_early
from trainer.errors import Cancelled, NonFiniteLossError
from trainer.events import Validated
from trainer.runs import RequestName
from trainer.training.averages import weights_in_use
from trainer.training.export import export_along_the_way, is_exported
from trainer.training.preview import has_previews, make_previews
from trainer.training.remedy import prepare_remedies, take_remedy
from trainer.training.report import Reporter
from trainer.training.resume import save_checkpoint
from trainer.training.state import TrainParts, TrainState
from trainer.training.step import FiniteGuard, can_skip, train_step
from trainer.training.validation import validation_loss


def train_loop(parts: TrainParts, state: TrainState) -> None:
    """Train from the step after `state.step` to the last; `state` is changed along the way.

    Raises: Cancelled after a checkpoint, when the user asked to stop. NonFiniteLossError before the weights are spoiled,
    unless the settings have a remedy. ResourceError: the disk is full; the last checkpoint is whole.
    """
    # An average takes each step's weights in, so that a broken step must be seen in it.
    is_deferred = parts.device.type == "cuda" and parts.average is None and can_skip(parts.optimizer.optimizer)
    # A step that is to be left out must be known before the next one begins.
    is_deferred = is_deferred and parts.config.training.on_nan != "skip_batch"
    guard = FiniteGuard(deferred=is_deferred)
    reporter = Reporter(parts, guard, first_step=state.step + 1)
    prepare_remedies(parts, state)
    if state.step == parts.total_steps:
        end_early(parts.adapter)
    if state.step in (0, parts.total_steps):
        validate(parts, state)
    _show_and_export(parts, state)  # what a killed process still owed at its last checkpoint
    while state.step < parts.total_steps:
        try:
            _advance(parts, state, guard, reporter)
        except NonFiniteLossError as error:
            take_remedy(parts, state, error)
            reporter.drop()


def _advance(parts: TrainParts, state: TrainState, guard: FiniteGuard, reporter: Reporter) -> None:
    """One step, unless it is to be left out, and what is due after it."""
    started, step = time.monotonic(), state.step + 1
    result = None
    if step not in state.remedies.skipped:
        result = train_step(parts, step, guard, state.remedies.rate_factor)
    state.step = step
    seconds = time.monotonic() - started
    state.elapsed_seconds += seconds
    if result is not None:
        reporter.add(result, seconds, state)
    _due_actions(parts, state, reporter)


def _due_actions(parts: TrainParts, state: TrainState, reporter: Reporter) -> None:
    """What is due after a step: measure, save, then show, for a sample that fails must not cost the step."""
    config, run = parts.config, parts.context.run
    is_last = state.step == parts.total_steps
    wants_stop, wants_save, wants_preview = _requests(parts)
    validates = is_last or _is_due(config.validation.every, state.step)
    saves = is_last or wants_stop or wants_save or _is_due(config.save.checkpoint_every, state.step)
    shows = is_last or wants_preview or _is_due(config.preview.every, state.step)
    if not (validates or saves or shows or _is_due(config.save.export_every, state.step)):
        return
    reporter.flush(state)
    if validates:
        validate(parts, state)
    if saves:
        save_checkpoint(parts, state)
    if wants_stop and not is_last:
        raise Cancelled("Stopped.")
    if wants_preview:
        run.clear_requests("preview")
        with weights_in_use(parts):
            parts.ranks.on_main(partial(make_previews, parts, state.step))
    if wants_save:
        run.clear_requests("save")
        with weights_in_use(parts):
            parts.ranks.on_main(partial(export_along_the_way, parts, state))
    _show_and_export(parts, state)
    parts.context.stage("Training", state.step, parts.total_steps)


def _requests(parts: TrainParts) -> list[bool]:
    """What the user asks for, as the main process sees it: stop, save, preview."""
    names: tuple[RequestName, ...] = ("stop", "save", "preview")
    asked = parts.ranks.from_main(sum(parts.context.run.has_request(name) << bit for bit, name in enumerate(names)))
    return [bool(asked >> bit & 1) for bit in range(len(names))]


def _show_and_export(parts: TrainParts, state: TrainState) -> None:
    """The samples and files that belong to this step, unless they are there already."""
    if _has_something_due(parts, state):
        parts.ranks.on_main(partial(_show_and_export_here, parts, state))


def _has_something_due(parts: TrainParts, state: TrainState) -> bool:
    config = parts.config
    is_edge = state.step in (0, parts.total_steps)
    return is_edge or _is_due(config.preview.every, state.step) or _is_due(config.save.export_every, state.step)


def _show_and_export_here(parts: TrainParts, state: TrainState) -> None:
    config = parts.config
    is_edge = state.step in (0, parts.total_steps)
    if (is_edge or _is_due(config.preview.every, state.step)) and not has_previews(parts, state.step):
        with weights_in_use(parts):
            make_previews(parts, state.step)
    is_along_the_way = 0 < state.step < parts.total_steps and _is_due(config.save.export_every, state.step)
    if is_along_the_way and not is_exported(parts, state.step):
        with weights_in_use(parts):
            export_along_the_way(parts, state)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def validate(parts: TrainParts, state: TrainState) -> None:
    """Measure the validation loss, unless it was measured at this step before."""
    if state.validation and state.validation[-1][0] == state.step:
        return
    parts.context.stage("Measuring the validation loss")
    with weights_in_use(parts):
        loss = validation_loss(parts)
    state.validation.append((state.step, loss))
    parts.context.emit(Validated(step=state.step, loss=loss))
