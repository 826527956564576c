"""The denoising loop, for pictures of one size together.

The loop is ours because it must work on a UNet that carries adapters; the schedulers are diffusers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.models.components import Components
from trainer.models.conditioning import Conditioning
from trainer.models.text import PromptOptions
from trainer.sampling.painting import wholly_masked
from trainer.sampling.request import OnStep, SampleRequest, WeightSchedule
from trainer.sampling.samplers import build_scheduler, last_steps, noise_levels, set_steps, step_options


class Progress:
    """Counts steps over all batches."""

    def __init__(self, on_step: OnStep | None) -> None:
        self.total, self._done, self._on_step = 0, 0, on_step

    def advance(self, latents: Tensor) -> None:
        """A step is done."""
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self.total, latents)


@dataclass(frozen=True)
class _Kept:
    """What stays of the latents there were: where `repainted` is 0.

    It is put back into what the model has in mind, not into what is between two steps: so every sampler, of whatever order and
    with whatever noise, carries the kept part along its own path to exactly those latents.
    """

    repainted: Tensor
    origin: Tensor

    def put_back(self, latents: Tensor) -> Tensor:
        return self.repainted * latents + (1 - self.repainted) * self.origin


class Batch:
    """Pictures of one size that are denoised together."""

    def __init__(self, components: Components, requests: Sequence[SampleRequest]) -> None:
        first = requests[0]
        self.components, self.is_guided, self.requests = components, first.is_guided, requests
        self.generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        self.scheduler: Any = build_scheduler(first.sampler, components.scheduler_config)
        set_steps(self.scheduler, first.num_inference_steps, components.device)
        self.timesteps = last_steps(self.scheduler, first.start.strength if first.start else 1.0)
        self.step_options = step_options(first.sampler, self.generators, first.eta)
        self.guidance = self._column([request.guidance_scale for request in requests])
        self.rescale = self._column([request.guidance_rescale for request in requests])
        factor = components.vae_scale_factor
        self.shape = (1, components.latent_channels, first.height // factor, first.width // factor)
        starts = [request.start for request in requests if request.start is not None]
        self.strength = starts[0].strength if starts else 1.0
        self.origin = torch.stack([start.latents for start in starts]).to(components.device) if starts else None
        masks = [start.repainted for start in starts if start.repainted is not None]
        self.kept: _Kept | None = None
        if masks and self.origin is not None:
            self.kept = _Kept(torch.stack(masks).to(components.device), self.origin)
        self.shown = self._what_is_shown() if components.is_inpainting else None

    def denoise(self, progress: Progress, schedule: WeightSchedule | None = None) -> Tensor:
        """Finished latents, float32."""
        latents = self._first_latents()
        batch = len(latents) * (2 if self.is_guided else 1)
        if schedule is not None:
            schedule.begin(max(1, len(self.timesteps)), batch * latents[0, 0].numel(), batch)
        try:
            for step, timestep in enumerate(self.timesteps):
                if (schedule is not None and schedule.at(step)) or step == 0:
                    self.conditioning = _embed(self.components, self.requests)
                model_input = self.scheduler.scale_model_input(latents, timestep)
                model_pred = self._predict(model_input, timestep)
                levels = noise_levels(self.scheduler, step, timestep)
                clean = self._clean(model_input, model_pred, levels)
                if self.kept is not None:
                    clean = self.kept.put_back(clean)
                    model_pred = self._prediction_of(clean, model_input, levels)
                latents = self.scheduler.step(model_pred, timestep, latents, **self.step_options).prev_sample
                progress.advance(clean)
        finally:
            if schedule is not None:
                schedule.end()
        return latents if self.kept is None else self.kept.put_back(latents)

    def _first_latents(self) -> Tensor:
        noise = torch.cat([torch.randn(self.shape, generator=generator) for generator in self.generators])
        noise = noise.to(self.components.device)
        if self.origin is None or self.strength >= 1:
            return noise * self.scheduler.init_noise_sigma
        if not self.timesteps:
            return self.origin
        return self.scheduler.add_noise(self.origin, noise, self.timesteps[0].expand(len(noise)))

    def _what_is_shown(self) -> Tensor:
        """What an inpainting model sees beside the latents of each picture: without a mask, that all is made anew."""
        first = self.requests[0]
        shown = [request.start.shown if request.start else None for request in self.requests]
        everything = None
        if any(each is None for each in shown):
            everything = wholly_masked(self.components, first.width, first.height)
        return torch.stack([everything if each is None else each for each in shown]).to(self.components.device)  # type: ignore[misc]

    def _predict(self, model_input: Tensor, timestep: Tensor) -> Tensor:
        """The model's answer, float32; with guidance, prompt and negative prompt go through the UNet in one call."""
        components = self.components
        if self.shown is not None:
            model_input = torch.cat([model_input, self.shown], 1)
        doubled = torch.cat([model_input] * 2) if self.is_guided else model_input
        timesteps = timestep.expand(doubled.shape[0]).to(doubled.device)
        model_pred = components.family.predict(components, doubled, timesteps, self.conditioning)
        if not self.is_guided:
            return model_pred
        without, with_prompt = model_pred.chunk(2)
        guided = without + self.guidance * (with_prompt - without)
        return rescaled(guided, with_prompt, self.rescale) if self.rescale.any() else guided

    def _clean(self, model_input: Tensor, model_pred: Tensor, levels: tuple[float, float]) -> Tensor:
        """The finished latents that the model has in mind: what it sees is `signal x0 + noise eps` with every scheduler."""
        signal, noise = levels
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return signal * model_input - noise * model_pred
        return model_pred if kind == "sample" else (model_input - noise * model_pred) / signal

    def _prediction_of(self, clean: Tensor, model_input: Tensor, levels: tuple[float, float]) -> Tensor:
        """The answer with which the model would have had these latents in mind."""
        signal, noise = levels[0], max(levels[1], 1e-8)
        kind = self.scheduler.config.prediction_type
        if kind == "v_prediction":
            return (signal * model_input - clean) / noise
        return clean if kind == "sample" else (model_input - signal * clean) / noise

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=self.components.device).view(-1, 1, 1, 1)


def rescaled(guided: Tensor, with_prompt: Tensor, share: Tensor | float) -> Tensor:
    """Guidance without overexposure: the guided prediction at the spread of the unguided one, mixed in by `share`.

    arXiv 2305.08891, equations 15 and 16. `guided` and `with_prompt` are `(batch, channels, height, width)`.
    """
    spread = with_prompt.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True).clamp(min=1e-8)
    return guided * (share * spread + (1 - share))


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
