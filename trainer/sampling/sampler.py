"""Text to pictures: one denoising loop for generation and for the samples made while training.

The loop is ours because it must work on a UNet that carries adapters; the schedulers are diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.config.generate import SamplerName
from trainer.errors import ConfigError, InkwashError
from trainer.models.components import Components
from trainer.models.conditioning import Conditioning
from trainer.models.text import PromptOptions
from trainer.sampling.samplers import SAMPLERS, build_scheduler


class WeightSchedule(Protocol):
    """Weights that change while a picture is made (`trainer.sampling.schedule`)."""

    def begin(self, num_steps: int, positions: int, batch: int) -> None:
        """A run of so many steps begins, with so many latent pixels and pictures at once."""
        ...

    def at(self, step: int) -> bool:
        """Make the weights those of a step, from 0. Returns whether the prompts must be encoded anew."""
        ...

    def end(self) -> None:
        """The run is over."""
        ...


OnStep = Callable[[int, int, Tensor], None]
"""Called after each denoising step with its number (from 1), the number of all steps, and the model's present idea of
the finished latents, `(batch, channels, height, width)` float32. May raise Cancelled."""


@dataclass(frozen=True)
class SampleRequest:
    """One picture to be made. Sizes are in pixels; `guidance_scale` of 1 or less means no guidance; without `has_weights`
    brackets in the prompts are plain text."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    sampler: SamplerName
    guidance_scale: float
    seed: int
    clip_skip: int = 1
    has_weights: bool = True

    @property
    def is_guided(self) -> bool:
        """Whether the model is also asked without the prompt (arXiv 2207.12598)."""
        return self.guidance_scale > 1.0

    def _batch_key(self) -> tuple[Any, ...]:
        shape = (self.width, self.height, self.num_inference_steps, self.sampler)
        return (*shape, self.is_guided, self.clip_skip, self.has_weights)


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

    Raises: ConfigError: a size the model cannot make. InkwashError: the model gave NaN. Whatever `on_step` raises.
    """
    for request in requests:
        check_size(components, request.width, request.height)
    batches: dict[tuple[Any, ...], list[int]] = {}
    for index, request in enumerate(requests):
        batches.setdefault(request._batch_key(), []).append(index)
    pictures: dict[int, Image.Image] = {}
    progress = _Progress(on_step)
    with torch.no_grad(), _evaluating(components):
        prepared = [(indices, _Batch(components, [requests[i] for i in indices])) for indices in batches.values()]
        progress.total = sum(len(batch.timesteps) for _, batch in prepared)
        for indices, batch in prepared:
            pictures |= dict(zip(indices, _decode(components, batch.denoise(progress, schedule)), strict=True))
    return [pictures[index] for index in range(len(requests))]


class _Progress:
    """Counts steps over all batches."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.total, self._done, self._on_step = 0, 0, on_step

    def advance(self, latents: Tensor) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self.total, latents)


class _Batch:
    """Pictures of one size that are denoised together."""

    def __init__(self, components: Components, requests: Sequence[SampleRequest]) -> None:
        first = requests[0]
        self.components, self.is_guided = components, first.is_guided
        self.generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        self.scheduler: Any = build_scheduler(first.sampler, components.scheduler_config)
        self.scheduler.set_timesteps(first.num_inference_steps, device=components.device)
        self.timesteps: list[Tensor] = list(self.scheduler.timesteps)
        self.step_options = {"generator": self.generators} if SAMPLERS[first.sampler].draws_noise else {}
        self.requests = requests
        scales = [request.guidance_scale for request in requests]
        self.guidance = torch.tensor(scales, device=components.device).view(-1, 1, 1, 1)
        factor = components.vae_scale_factor
        self.shape = (1, components.unet.config["in_channels"], first.height // factor, first.width // factor)

    def denoise(self, progress: _Progress, schedule: WeightSchedule | None = None) -> Tensor:
        """Finished latents, float32."""
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        latents = torch.cat(noise).to(self.components.device) * self.scheduler.init_noise_sigma
        batch = len(latents) * (2 if self.is_guided else 1)
        if schedule is not None:
            schedule.begin(len(self.timesteps), batch * latents[0, 0].numel(), batch)
        try:
            for step, timestep in enumerate(self.timesteps):
                if (schedule is not None and schedule.at(step)) or step == 0:
                    self.conditioning = _embed(self.components, self.requests)
                model_input = self.scheduler.scale_model_input(latents, timestep)
                model_pred = self._predict(model_input, timestep)
                latents = self.scheduler.step(model_pred, timestep, latents, **self.step_options).prev_sample
                progress.advance(self._estimate(model_input, model_pred, timestep))
        finally:
            if schedule is not None:
                schedule.end()
        return latents

    def _predict(self, model_input: Tensor, timestep: Tensor) -> Tensor:
        """The model's answer, float32; with guidance, prompt and negative prompt go through the UNet in one call."""
        components = self.components
        doubled = torch.cat([model_input] * 2) if self.is_guided else model_input
        timesteps = timestep.expand(doubled.shape[0]).to(doubled.device)
        model_pred = components.family.predict(components, doubled, timesteps, self.conditioning)
        if not self.is_guided:
            return model_pred
        without, with_prompt = model_pred.chunk(2)
        return without + self.guidance * (with_prompt - without)

    def _estimate(self, model_input: Tensor, model_pred: Tensor, timestep: Tensor) -> Tensor:
        """The clean latents that the model has in mind.

        What the UNet sees is `sqrt(a) x0 + sqrt(1 - a) noise` with every scheduler, so one formula serves them all.
        """
        alphas = self.scheduler.alphas_cumprod
        alpha = float(alphas[min(max(round(float(timestep)), 0), len(alphas) - 1)])
        signal, noise = max(alpha, 1e-8) ** 0.5, (1 - alpha) ** 0.5
        prediction_type = self.scheduler.config.prediction_type
        if prediction_type == "v_prediction":
            return signal * model_input - noise * model_pred
        return model_pred if prediction_type == "sample" else (model_input - noise * model_pred) / signal


def _embed(components: Components, requests: Sequence[SampleRequest]) -> Conditioning:
    """Conditioning of the UNet's batch: all negative prompts, then all prompts; each text is encoded once."""
    first = requests[0]
    negatives = [request.negative_prompt for request in requests] if first.is_guided else []
    prompts = [*negatives, *(request.prompt for request in requests)]
    distinct = list(dict.fromkeys(prompts))
    options = PromptOptions(first.clip_skip, has_weights=first.has_weights)
    with components.resident(*components.text_encoders):
        encoded = components.family.encode_prompts(components, distinct, options)
    conditioning = encoded.select([distinct.index(prompt) for prompt in prompts])
    if components.family.zeroes_empty_negative and "" in negatives:
        blank = [index < len(negatives) and not prompt for index, prompt in enumerate(prompts)]
        conditioning = conditioning.without(blank)
    # The picture is its own original: nothing was cut off.
    frame = [first.height, first.width, 0, 0, first.height, first.width]
    frames = torch.tensor([frame] * len(prompts), dtype=torch.float32)
    return conditioning.framed(frames).cast(components.device, components.dtype)


def _decode(components: Components, latents: Tensor) -> list[Image.Image]:
    if not torch.isfinite(latents).all():
        raise InkwashError(
            "The model gave NaN instead of a picture.",
            fix="Use precision fp32 or bf16, lower the LoRA weights, or try another sampler or more steps.",
        )
    # One at a time: the VAE's activations are the peak of memory.
    with components.resident("vae"):
        pixels = [components.family.decode_latents(components, latent[None])[0] for latent in latents]
    return [to_image(picture) for picture in pixels]


def to_image(pixels: Tensor) -> Image.Image:
    """`(3, height, width)` in [0, 1] as a picture."""
    values = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))


@contextmanager
def _evaluating(components: Components) -> Iterator[None]:
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
