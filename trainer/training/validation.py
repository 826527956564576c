"""The validation loss: fixed pictures, noise and timesteps, unweighted, so that it can be compared between steps and runs."""

from __future__ import annotations

import torch

from trainer.data.batches import frames_of
from trainer.data.captions import settled
from trainer.data.examples import Example
from trainer.data.randomness import generator_for
from trainer.data.variants import PLAIN
from trainer.objectives.diffusion import add_noise, evenly_spread_timesteps, target
from trainer.objectives.losses import squared_error
from trainer.training.base_prediction import evaluating
from trainer.training.state import TrainParts


def validation_loss(parts: TrainParts) -> float:
    """Mean squared error of the prediction over all pictures and timesteps, with the adapter as it is now."""
    objective = parts.config.objective
    timesteps = evenly_spread_timesteps(
        objective.min_timestep, objective.max_timestep, parts.config.validation.num_timesteps
    )
    with torch.no_grad(), evaluating(parts):
        # Each process measures its pictures; zeros stand for those of the others, so that the sum is all, to the bit.
        pictures, ranks = parts.split.validation, parts.ranks
        errors = torch.zeros(len(pictures), len(timesteps), dtype=torch.float64)
        rows = [_errors(parts, picture, timesteps) for picture in pictures[ranks.index :: ranks.count]]
        if rows:
            errors[ranks.index :: ranks.count] = torch.stack(rows).double().cpu()
        return float(ranks.add_up(errors).mean())


def _errors(parts: TrainParts, example: Example, timesteps: list[int]) -> torch.Tensor:
    """Errors of one picture at each timestep, `(len(timesteps),)`."""
    schedule, device = parts.noise_schedule, parts.device
    latents, _ = parts.latents.get(example)
    # Named by the picture, not by its place, so that a picture more or less leaves the others' noise as it was.
    generator = generator_for("validation noise", parts.config.training.seed, example.sha256)
    noise = torch.randn((len(timesteps), *latents.shape), generator=generator).to(device)
    times = torch.tensor(timesteps, device=device)
    latents = latents.to(device).expand_as(noise)
    noisy_latents = add_noise(latents, noise, times, schedule.alphas_cumprod)
    goal = target(schedule.prediction_type, latents, noise, times, schedule.alphas_cumprod)
    frames = frames_of([(example, PLAIN)] * len(timesteps)).to(device)
    caption = settled(example.caption, parts.config.data)
    errors: list[torch.Tensor] = []
    size = parts.config.training.batch_size
    for start in range(0, len(timesteps), size):
        chunk = slice(start, start + size)
        with parts.accelerator.autocast():
            conditioning = parts.texts.encode([caption] * len(timesteps[chunk])).framed(frames[chunk])
        model_pred = parts.components.family.predict(parts.components, noisy_latents[chunk], times[chunk], conditioning)
        errors.append(squared_error(model_pred, goal[chunk]))
    return torch.cat(errors)
