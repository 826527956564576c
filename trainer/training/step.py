"""One weight update: forward and backward of its micro-batches, the guard against NaN, clipping, the optimizer."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainer.config.adapter import PLAIN
from trainer.config.embedding import GROUP as EMBEDDING
from trainer.data.batches import Batch
from trainer.data.randomness import stream_seed
from trainer.errors import Finding, NonFiniteLossError
from trainer.models.attention import training_attention
from trainer.objectives.diffusion import target
from trainer.objectives.losses import error
from trainer.objectives.weighting import loss_weights, signal_to_noise
from trainer.optimizers.schedule import multiplier
from trainer.training.base_prediction import base_prediction, predict
from trainer.training.state import TrainParts


@dataclass
class StepResult:
    """What a step found, still on the device: reading a number there would wait for the GPU.

    `is_fused`: weights were updated within the backward pass, before all of the gradient was known. `is_scaled`: the loss
    was scaled for fp16, so that gradients may overflow.
    """

    step: int
    loss: Tensor
    prior_loss: Tensor | None
    grad_norm: Tensor
    pictures: tuple[str, ...]
    is_fused: bool = False
    is_scaled: bool = False


def train_step(parts: TrainParts, step: int, guard: FiniteGuard, rate_factor: float = 1.0) -> StepResult:
    """Do step number `step` (from 1), with the learning rates times `rate_factor`.

    Raises: NonFiniteLossError, at the latest when `guard` is next asked.
    """
    for group in parts.optimizer.param_groups:
        group["lr"] = rate_at(parts, group["name"], step) * rate_factor
    parts.optimizer.zero_grad()
    embedding = parts.config.adapter.embedding
    parts.components.words.is_held = not embedding.learns(EMBEDDING, step, parts.total_steps)
    loss, prior_loss, pictures = _accumulate_gradients(parts, step)
    penalty = parts.adapter.penalty()
    if penalty is not None:
        parts.accelerator.backward(penalty)
    parts.ranks.average(parts.trainable, [loss] if prior_loss is None else [loss, prior_loss])
    grad_norm = _clip(parts, step) if parts.fused is None else parts.fused.finish()
    result = StepResult(
        step,
        loss,
        prior_loss,
        grad_norm,
        pictures,
        is_fused=parts.fused is not None,
        is_scaled=parts.accelerator.scaler is not None,
    )
    guard.watch(parts, result)
    if parts.fused is None:
        parts.optimizer.step()
    parts.adapter.after_step(step, parts.total_steps)
    if parts.average is not None:
        parts.average.update()
    return result


def _learning(parts: TrainParts, step: int) -> list[torch.nn.Parameter]:
    """The weights that a step changes. Gradients of others count in the optimizer's means, not in the length that is clipped."""
    embedding = parts.config.adapter.embedding
    groups = parts.groups.items()
    return [weight for name, weights in groups if embedding.learns(name, step, parts.total_steps) for weight in weights]


def rate_at(parts: TrainParts, group: str, step: int) -> float:
    """The learning rate of a group in a step: with its schedule, and 0 where it rests (`adapter.embedding.phase`)."""
    if not parts.config.adapter.embedding.learns(group, step, parts.total_steps):
        return 0.0
    return learning_rate(parts, group) * multiplier(parts.config.schedule, step, parts.total_steps)


def _clip(parts: TrainParts, step: int) -> Tensor:
    """Shorten the gradient as the settings ask; returns its length before."""
    max_norm = parts.config.training.max_grad_norm or math.inf
    grad_norm = parts.accelerator.clip_grad_norm_(_learning(parts, step), max_norm)
    if grad_norm is None:
        raise RuntimeError("accelerate gave no gradient norm")
    return grad_norm.detach()


def learning_rate(parts: TrainParts, group: str) -> float:
    """The full learning rate of a group of weights: its part's ("unet", "text_encoder", "text_encoder_2") times its own factor."""
    return parts.config.optimizer.learning_rate(group.partition(" ")[0]) * parts.adapter.rate_factor(group)


def _accumulate_gradients(parts: TrainParts, step: int) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    config, count = parts.config, parts.config.training.gradient_accumulation
    seed = config.training.seed
    loss = torch.zeros((), device=parts.device)
    has_prior = parts.class_batches is not None or parts.start is not None
    prior_loss = torch.zeros((), device=parts.device) if has_prior else None
    pictures: list[str] = []
    for micro_batch in range(count):
        number = (step - 1) * count + micro_batch
        # What torch itself draws (dropout in the adapter) follows from the step, too.
        torch.manual_seed(stream_seed("torch", seed, step, micro_batch, *_own_stream(parts)))
        batch = parts.batches.make(number, "instance", seed, step, micro_batch)
        pictures += parts.batches.names(number)
        part = denoising_loss(parts, batch)
        parts.accelerator.backward(part / count)
        loss += part.detach() / count
        if prior_loss is not None:
            # A second pass rather than one batch of both: class pictures are square, yours may not be.
            if parts.class_batches is not None:
                part = denoising_loss(parts, parts.class_batches.make(number, "class", seed, step, micro_batch))
            else:
                batch = parts.batches.make(number, "base prediction", seed, step, micro_batch)
                prompts = tuple(example.class_prompt or config.data.prior.class_prompt for example in batch.examples)
                # The base model is kept in the background, too.
                part = base_prediction_loss(parts, replace(batch, captions=prompts, area=None))
            parts.accelerator.backward(config.data.prior.weight * part / count)
            prior_loss += part.detach() / count
    return loss, prior_loss, tuple(dict.fromkeys(pictures))


def _own_stream(parts: TrainParts) -> tuple[int, ...]:
    """What tells the draws of a process from those of others: inputs and ranks are dropped for each picture, layers for all.

    loha's and lokr's rank dropout is of the change of a weight, which all pictures have in common.
    """
    adapter = parts.config.adapter
    is_by_picture = adapter.dropout or (adapter.rank_dropout and adapter.method in PLAIN)
    return (parts.ranks.index,) if parts.ranks.index and is_by_picture else ()


def denoising_loss(parts: TrainParts, batch: Batch) -> Tensor:
    """The weighted error of a micro-batch, a scalar in float32."""
    batch = batch.to(parts.device)
    schedule = parts.noise_schedule
    # Checkpointing computes the forward pass again in the backward pass, where this choice of kernel no longer holds.
    is_plain = not parts.config.training.gradient_checkpointing
    with training_attention(batch.latents) if is_plain else nullcontext():
        model_pred = predict(parts, batch)
    goal = target(schedule.prediction_type, batch.latents, batch.noise, batch.timesteps, schedule.alphas_cumprod)
    return _weighted_error(parts, batch, model_pred, goal)


def base_prediction_loss(parts: TrainParts, batch: Batch) -> Tensor:
    """The weighted error against what the base model predicts for the same input, a scalar in float32."""
    batch = batch.to(parts.device)
    goal = base_prediction(parts, batch)
    is_plain = not parts.config.training.gradient_checkpointing
    with training_attention(batch.latents) if is_plain else nullcontext():
        model_pred = predict(parts, batch)
    return _weighted_error(parts, batch, model_pred, goal)


def _weighted_error(parts: TrainParts, batch: Batch, model_pred: Tensor, goal: Tensor) -> Tensor:
    schedule, objective = parts.noise_schedule, parts.config.objective
    errors = error(objective, model_pred, goal, batch.timesteps, schedule.alphas_cumprod, batch.area)
    snr = signal_to_noise(schedule.alphas_cumprod, batch.timesteps)
    return (errors * batch.weights * loss_weights(objective, snr, schedule.prediction_type)).mean()


@dataclass
class FiniteGuard:
    """Keeps NaN and Inf out of the weights and says in which step they came.

    On a CPU the loss is looked at before the update. On a GPU that would wait for it in each step; there an optimizer
    whose kernel can is told, on the device, to skip the update (`can_skip`), and the flags are read in `check`, which the
    loop calls before it reports or saves anything.
    """

    deferred: bool
    _pending: list[tuple[StepResult, Tensor]] = field(default_factory=list)

    def watch(self, parts: TrainParts, result: StepResult) -> None:
        """Look at a step's loss and gradients before the update."""
        seen = result.loss if result.prior_loss is None else result.loss + result.prior_loss
        broken, scaler = ~torch.isfinite(seen), parts.accelerator.scaler
        is_endless = ~torch.isfinite(result.grad_norm)
        if scaler is not None:
            # With fp16 gradients overflow now and then by design: the scaler skips those updates and halves its scale. One
            # that is broken at any scale would be skipped for ever. The product is the scale, not waited for on a GPU.
            is_endless = is_endless & (scaler.scale(torch.ones_like(result.grad_norm)) <= 1)
        broken = broken | is_endless
        self._pending.append((result, broken))
        if not self.deferred:
            self.check()
        elif scaler is None:
            parts.optimizer.optimizer.grad_scale = None
            parts.optimizer.optimizer.found_inf = broken.float()

    def check(self) -> None:
        """Raise NonFiniteLossError for the first broken step since the last call."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        flags = torch.stack([broken for _, broken in pending]).tolist()
        for (result, _), is_broken in zip(pending, flags, strict=True):
            if is_broken:
                raise _non_finite(result)


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer looks at `found_inf` on the device, as torch's fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _non_finite(result: StepResult) -> NonFiniteLossError:
    losses = [result.loss] if result.prior_loss is None else [result.loss, result.prior_loss]
    is_loss = not all(math.isfinite(float(loss)) for loss in losses)
    what = "The loss" if is_loss else "The gradient"
    when = " after others that fp16 skipped" if result.is_scaled and not is_loss else ""
    unchanged = "" if result.is_fused else " The weights were not changed by that step."
    return NonFiniteLossError(
        f"{what} became NaN or infinite in step {result.step}{when}.{unchanged}",
        where=f"step {result.step}",
        fix="Lower the learning rates (by 3 to 10 times), keep alpha at most equal to the rank, or use precision fp32 or "
        "bf16.",
        findings=[Finding(name, "was in the batch") for name in result.pictures],
        step=result.step,
    )
