"""Text, and pictures, to pictures: for generation and for the samples made while training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.errors import ConfigError, NonFinitePictureError
from trainer.models.components import Components
from trainer.sampling.denoise import Batch, Progress
from trainer.sampling.request import OnStep, SampleRequest, Start, WeightSchedule

__all__ = [
    "OnStep",
    "SampleRequest",
    "Start",
    "WeightSchedule",
    "check_size",
    "decode",
    "sample",
    "sample_latents",
    "to_image",
]


def check_size(components: Components, width: int, height: int) -> None:
    """Raise ConfigError unless the base model can make pictures of this size."""
    factor = components.vae_scale_factor
    for field, value in (("width", width), ("height", height)):
        if value < factor or value % factor:
            lower = max(factor, value // factor * factor)
            raise ConfigError(
                f"'{components.name}' makes pictures whose {field} is a multiple of {factor}; {value} is not.",
                where=field,
                fix=f"Use {lower} or {lower + factor}; the model's own size is {components.resolution}.",
            )


def sample(
    components: Components,
    requests: Sequence[SampleRequest],
    *,
    on_step: OnStep | None = None,
    schedule: WeightSchedule | None = None,
) -> list[Image.Image]:
    """Make one picture for each request, in their order.

    Requests of equal size, sampler and step count are denoised together. Each picture's noise comes from its own seed
    alone, drawn on the CPU: it is the same alone, in a batch, and on every device up to rounding. The global random
    state is neither read nor changed. A `schedule` changes the weights from step to step; what works on the text
    encoders has its effect on the prompts in its own steps only.

    Raises: ConfigError: a size or an option the model cannot do. NonFinitePictureError: the model gave NaN. Whatever `on_step` raises.
    """
    return decode(components, sample_latents(components, requests, on_step=on_step, schedule=schedule))


def sample_latents(
    components: Components,
    requests: Sequence[SampleRequest],
    *,
    on_step: OnStep | None = None,
    schedule: WeightSchedule | None = None,
) -> list[Tensor]:
    """As `sample`, but the finished latents, `(channels, height, width)` float32 each."""
    for request in requests:
        check_size(components, request.width, request.height)
    batches: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        batches.setdefault(request.batch_key(), []).append(index)
    made: dict[int, Tensor] = {}
    progress = Progress(on_step)
    with torch.no_grad(), evaluating(components):
        prepared = [(indices, Batch(components, [requests[i] for i in indices])) for indices in batches.values()]
        progress.total = sum(len(batch.timesteps) for _, batch in prepared)
        for indices, batch in prepared:
            made |= dict(zip(indices, batch.denoise(progress, schedule), strict=True))
    return [made[index] for index in range(len(requests))]


def decode(components: Components, latents: Sequence[Tensor]) -> list[Image.Image]:
    """Finished latents, `(channels, height, width)` each, as pictures. Raises NonFinitePictureError."""
    if not all(bool(torch.isfinite(latent).all()) for latent in latents):
        raise NonFinitePictureError(
            "The model gave NaN instead of a picture.",
            fix="Use precision fp32 or bf16, lower the LoRA weights, or try another sampler or more steps.",
        )
    # One at a time: the VAE's activations are the peak of memory.
    with torch.no_grad(), evaluating(components), components.resident("vae"):
        pixels = [components.family.decode_latents(components, latent[None])[0] for latent in latents]
    return [to_image(picture) for picture in pixels]


def to_image(pixels: Tensor) -> Image.Image:
    """`(3, height, width)` in [0, 1] as a picture."""
    values = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))


@contextmanager
def evaluating(components: Components) -> Iterator[None]:
    """Dropout off, and afterwards every module as it was: while training, some train and some do not."""
    modules = [m for part in components.parts for m in getattr(components, part).modules()]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
