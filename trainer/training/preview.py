"""Sample pictures made while training. They cost time, never the run: whatever goes wrong here is a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from trainer.data.captions import settled
from trainer.errors import Cancelled
from trainer.events import Picture, Warned
from trainer.files import write_atomically
from trainer.sampling.sampler import SampleRequest, sample
from trainer.training.state import TrainParts

log = logging.getLogger(__name__)
_NUM_CAPTIONS = 4


def preview_prompts(parts: TrainParts) -> list[str]:
    """The prompts of the settings, else captions of the data set, evenly spread over it."""
    if parts.config.preview.prompts:
        return parts.config.preview.prompts
    examples = (*parts.split.validation, *parts.split.training)
    captions = list(dict.fromkeys(settled(example.caption, parts.config.data) for example in examples))
    count = min(_NUM_CAPTIONS, len(captions))
    return [captions[index * len(captions) // count] for index in range(count)]


def preview_path(parts: TrainParts, step: int, index: int) -> Path:
    """Where a sample lies."""
    return parts.context.run.samples / f"step-{step:06d}-{index}.png"


def has_previews(parts: TrainParts, step: int) -> bool:
    """Whether the samples of a step were made, all of them."""
    return all(preview_path(parts, step, index).exists() for index in range(len(preview_prompts(parts))))


def make_previews(parts: TrainParts, step: int) -> None:
    """Make and save the samples of a step. A request to stop ends it early."""
    prompts = preview_prompts(parts)
    parts.context.stage("Making sample pictures", 0, len(prompts))
    try:
        pictures = sample(
            parts.components,
            [_request(parts, prompt) for prompt in prompts],
            on_step=lambda done, total, latents: parts.context.check_stop(),
        )
        for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            path = preview_path(parts, step, index)
            write_atomically(path, lambda temporary, image=picture: image.save(temporary), "a sample picture")
            seed = parts.config.preview.seed
            parts.context.emit(Picture(step=step, index=index, prompt=prompt, seed=seed, path=parts.relative(path)))
    except Cancelled:
        # The loop sees the request itself and stops with a checkpoint.
        return
    except Exception as error:  # Broad on purpose: a run of hours must not end because of a sample.
        log.exception("The sample pictures of step %d failed", step)
        parts.context.emit(Warned(message=f"The sample pictures of step {step} could not be made: {error}"))
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()


def _request(parts: TrainParts, prompt: str) -> SampleRequest:
    preview, factor = parts.config.preview, parts.components.vae_scale_factor
    side = parts.config.data.resolution // factor * factor
    return SampleRequest(
        prompt=prompt,
        negative_prompt=preview.negative_prompt,
        width=side,
        height=side,
        num_inference_steps=preview.num_inference_steps,
        sampler="DPM++ 2M Karras",
        guidance_scale=preview.guidance_scale,
        seed=preview.seed,
        clip_skip=parts.config.model.clip_skip,
        # Captions are no prompts: their brackets are what the trained text has.
        has_weights=bool(preview.prompts),
    )
