"""What is done after NaN or Inf: stop and say what can be done, leave the step out, or go back and on with lower rates.

All of it follows from the settings and the step, and what follows from it is in the state: a run that is killed at any
point after a remedy, and resumed, ends with the same bytes as one that is not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from trainer.errors import NonFiniteLossError
from trainer.events import Remedied
from trainer.training.given_up import set_aside
from trainer.training.resume import checkpoint_store, load_checkpoint, save_checkpoint
from trainer.training.state import TrainParts, TrainState


def prepare_remedies(parts: TrainParts, state: TrainState) -> None:
    """Keep the start of the run, too, where the settings may want to go back to it."""
    if parts.config.training.on_nan != "stop" and state.step == 0:
        save_checkpoint(parts, state)


def take_remedy(parts: TrainParts, state: TrainState, error: NonFiniteLossError) -> None:
    """Do what the settings say after a step that gave NaN or Inf; `state` is then where the run goes on.

    Raises: NonFiniteLossError: the settings say to stop, or it was tried often enough.
    """
    training, before = parts.config.training, state.remedies
    if training.on_nan == "stop":
        raise _final(error, parts, "")
    if before.action != training.on_nan:
        # Another remedy was asked for, as the message below offers it: it has tries of its own.
        before = replace(before, count=0, action=training.on_nan)
    if before.count == training.on_nan_tries:
        raise _final(error, parts, f"Stopped after {before.count} remedies (training.on_nan_tries).")
    if parts.accelerator.scaler is not None:
        # The step was broken off: the scaler must forget its gradients, for it unscales those of a step only once.
        parts.accelerator.scaler.update(parts.accelerator.scaler.get_scale())
    is_untouched = state.step == error.step - 1 and parts.fused is None
    remedies = replace(before, count=before.count + 1)
    if training.on_nan == "skip_batch":
        remedies = replace(remedies, skipped=sorted({*before.skipped, error.step}))
    else:
        remedies = replace(remedies, rate_factor=before.rate_factor * training.on_nan_factor)
    if training.on_nan == "lower_rate" or not is_untouched:
        remedies = replace(remedies, back_to=_go_back(parts, state, error))
    state.remedies = remedies
    parts.context.emit(
        Remedied(
            step=error.step,
            back_to=state.step,
            action=training.on_nan,
            rate_factor=remedies.rate_factor,
            tries_left=training.on_nan_tries - remedies.count,
            pictures=[finding.where for finding in error.findings],
        )
    )


def _go_back(parts: TrainParts, state: TrainState, error: NonFiniteLossError) -> int:
    """Restore the last checkpoint; the one before it, if that one led here before. Returns its step."""
    store, last = checkpoint_store(parts), state.remedies.back_to
    checkpoint, _ = store.newest()
    if checkpoint is not None and checkpoint.state["train_state"]["step"] == last:
        older, _ = store.newest(before=last)
        checkpoint = older or checkpoint
    if checkpoint is None:
        raise _final(error, parts, "There is no checkpoint to go back to.")
    earlier = load_checkpoint(parts, checkpoint)
    # What lies after it comes from weights that the run no longer has.
    parts.ranks.meet()
    parts.ranks.on_main(partial(store.drop_after, earlier.step))
    parts.ranks.on_main(partial(set_aside, parts.context.run, parts.data, earlier.step))
    state.go_back_to(earlier)
    return earlier.step


def _final(error: NonFiniteLossError, parts: TrainParts, note: str) -> NonFiniteLossError:
    run = parts.context.run.reference
    offers = {
        "lower_rate": f"`inkwash resume {run} --on-nan lower_rate` goes back to the last checkpoint and on with lower rates",
        "skip_batch": f"`inkwash resume {run} --on-nan skip_batch` leaves such steps out",
    }
    others = [offer for word, offer in offers.items() if word != parts.config.training.on_nan]
    return NonFiniteLossError(
        " ".join(filter(None, (error.message, note))),
        where=error.where,
        fix=f"{error.fix} Or go on with this run: {'; '.join(others)}.",
        findings=error.findings,
        step=error.step,
    )
