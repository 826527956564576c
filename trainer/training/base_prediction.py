"""What the model predicts, and what the base model would have: prior preservation without pictures.

The base model is the model with the adapter in the state that it started from, in which every method changes nothing. So
one model serves as both, whatever the method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.adapters.method import AdapterMethod
from trainer.data.batches import Batch
from trainer.objectives.diffusion import add_noise
from trainer.training.state import TrainParts


def start_of(adapter: AdapterMethod) -> dict[str, Tensor]:
    """A copy of the state of an adapter that was attached and not trained yet; it follows from the run's seed."""
    return {name: tensor.detach().clone() for name, tensor in adapter.state_dict().items()}


def predict(parts: TrainParts, batch: Batch) -> Tensor:
    """The model's answer to a batch that is on its device, `(batch, channels, h, w)`."""
    noisy_latents = add_noise(batch.latents, batch.input_noise, batch.timesteps, parts.noise_schedule.alphas_cumprod)
    with parts.accelerator.autocast():
        conditioning = parts.texts.encode(batch.captions).framed(batch.frames)
    # Not under autocast: all of the UNet is of one number format, and its norms would be cast to fp32 and back.
    return parts.components.family.predict(parts.components, noisy_latents, batch.timesteps, conditioning)


def base_prediction(parts: TrainParts, batch: Batch) -> Tensor:
    """The base model's answer to a batch that is on its device, without a graph. `parts.start` must be there."""
    if parts.start is None:
        raise RuntimeError("the adapter's start was not kept")
    trained = start_of(parts.adapter)
    parts.adapter.load_state_dict(parts.start)
    try:
        with torch.no_grad(), evaluating(parts):
            return predict(parts, batch)
    finally:
        parts.adapter.load_state_dict(trained)


@contextmanager
def evaluating(parts: TrainParts) -> Iterator[None]:
    """Dropout off for a while."""
    models = (parts.components.unet, *parts.components.text_encoders.values())
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
