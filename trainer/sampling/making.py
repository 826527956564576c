"""A generation's settings to pictures: from text or a picture, in one pass or two."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from PIL import Image
from torch import Tensor

from trainer.config.generate import GenerateConfig
from trainer.models.components import Components
from trainer.sampling.larger import Enlargement, sample_larger
from trainer.sampling.painting import Painting
from trainer.sampling.request import OnStep, SampleRequest, Start, WeightSchedule
from trainer.sampling.sampler import check_size, decode, sample_latents
from trainer.sampling.samplers import step_options
from trainer.sampling.seamless import seamless
from trainer.sampling.upscaling import ModelUpscaler

_MOST_PIXELS = 4096


def picture_size(config: GenerateConfig, components: Components, init: Image.Image | None) -> tuple[int, int]:
    """Width and height that are made. Where the settings leave them open: those of the picture it starts from, else the model's.

    Raises: ConfigError: a size the model cannot make, or an option that the sampler lacks.
    """
    own = components.resolution, components.resolution
    if init is not None and config.masked_area == "whole picture":
        multiple = components.family.pixel_multiple(components)
        scale = min(1.0, _MOST_PIXELS / max(init.size))
        own = tuple(max(1, round(side * scale / multiple)) * multiple for side in init.size)
    size = config.width or own[0], config.height or own[1]
    check_size(components, *size)
    step_options(config.sampler, [], eta_of(config))
    return size


def eta_of(config: GenerateConfig) -> float | None:
    """The share of noise that is put in anew; None for the sampler's own."""
    return None if config.eta < 0 else config.eta


class Maker:
    """Makes the pictures of one set of settings.

    Args:
        config: the settings.
        components: the model, with its LoRAs.
        schedule: of LoRAs that come and go.
        size: width and height, of `picture_size`.
        painting: what is painted over; None for pictures from text alone.
        upscaler: the model that enlarges pictures for the second pass; None where that is done without one.
    """

    def __init__(
        self,
        config: GenerateConfig,
        components: Components,
        schedule: WeightSchedule,
        size: tuple[int, int],
        painting: Painting | None,
        upscaler: ModelUpscaler | None = None,
    ) -> None:
        self._config, self._components, self._schedule = config, components, schedule
        self._size, self._painting, self._upscaler = size, painting, upscaler
        self._start: Start | None = None

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of the largest picture that goes through the model."""
        if self._config.hires_scale == 1:
            return self._size
        return self._enlargement().size(*self._size, self._components.vae_scale_factor)

    def make(self, seeds: Sequence[int], on_step: OnStep) -> list[Image.Image]:
        """A picture for each seed, in their order; denoised together."""
        config, components = self._config, self._components
        with seamless(components) if config.seamless else nullcontext():
            if self._painting is not None and self._start is None:
                self._start = self._painting.start(components, config.strength)
            requests = [self._request(seed) for seed in seeds]
            if config.hires_scale > 1:
                passes = self._passes(on_step)
                latents = sample_larger(
                    components, requests, self._enlargement(), on_step=passes, schedule=self._schedule
                )
            else:
                latents = sample_latents(components, requests, on_step=on_step, schedule=self._schedule)
            images = decode(components, latents)
        return images if self._painting is None else [self._painting.finish(image) for image in images]

    def _enlargement(self) -> Enlargement:
        config = self._config
        return Enlargement(
            config.hires_scale, config.hires_upscaler, config.hires_strength, config.hires_steps, self._upscaler
        )

    def _passes(self, on_step: OnStep) -> tuple[OnStep, OnStep]:
        """The callback for the first and for the second pass, which count as one."""
        config = self._config
        later = round((config.hires_steps or config.num_inference_steps) * config.hires_strength)
        first_total = 0

        def first(step: int, total: int, latents: Tensor) -> None:
            nonlocal first_total
            first_total = total
            on_step(step, total + later, latents)

        return first, lambda step, total, latents: on_step(first_total + step, first_total + total, latents)

    def _request(self, seed: int) -> SampleRequest:
        config = self._config
        return SampleRequest(
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            width=self._size[0],
            height=self._size[1],
            num_inference_steps=config.num_inference_steps,
            sampler=config.sampler,
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            eta=eta_of(config),
            seed=seed,
            clip_skip=config.clip_skip,
            start=self._start,
        )
