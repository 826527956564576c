"""Hires fix: a picture is made at the size that the model knows, enlarged, and partly made anew at the larger size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor
from torch.nn import functional

from trainer.models.components import Components
from trainer.sampling.painting import encode
from trainer.sampling.request import OnStep, SampleRequest, Start, WeightSchedule
from trainer.sampling.sampler import decode, sample_latents
from trainer.sampling.upscaling import ModelUpscaler, Upscaling

_LATENT_MODES = {"latent": "bilinear", "latent bicubic": "bicubic", "latent nearest": "nearest-exact"}


@dataclass(frozen=True)
class Enlargement:
    """The second pass.

    Attributes:
        scale: times the width and height; the result is a multiple of what the VAE makes of a latent.
        upscaler: how the first picture is enlarged: a latent kind, or Lanczos.
        strength: the share of the second pass's steps that are done.
        num_inference_steps: of the second pass; 0 for as many as the first.
        model: the upscaling model that enlarges the picture, whatever `upscaler` is.
    """

    scale: float
    upscaler: str
    strength: float
    num_inference_steps: int = 0
    model: ModelUpscaler | None = None

    def size(self, width: int, height: int, multiple: int) -> tuple[int, int]:
        """Width and height of the result, in pixels."""
        return tuple(max(1, round(side * self.scale / multiple)) * multiple for side in (width, height))  # type: ignore[return-value]


def second_requests(
    components: Components, requests: Sequence[SampleRequest], latents: Sequence[Tensor], enlargement: Enlargement
) -> list[SampleRequest]:
    """What is asked of the second pass, given the first one's finished latents, `(channels, height, width)` each."""
    asked = []
    with enlargement.model.loaded(components.device) if enlargement.model else nullcontext() as upscaling:
        for request, latent in zip(requests, latents, strict=True):
            factor = components.vae_scale_factor
            width, height = enlargement.size(request.width, request.height, factor)
            larger = _enlarged(
                components, latent, (width // factor, height // factor), upscaling or enlargement.upscaler
            )
            steps = enlargement.num_inference_steps or request.num_inference_steps
            start = Start(larger, enlargement.strength)
            asked.append(replace(request, width=width, height=height, num_inference_steps=steps, start=start))
    return asked


def sample_larger(
    components: Components,
    requests: Sequence[SampleRequest],
    enlargement: Enlargement,
    *,
    on_step: tuple[OnStep | None, OnStep | None] = (None, None),
    schedule: WeightSchedule | None = None,
) -> list[Tensor]:
    """The finished latents of both passes, `(channels, height, width)` each; `on_step` is that of the first and of the second."""
    latents = sample_latents(components, requests, on_step=on_step[0], schedule=schedule)
    second = second_requests(components, requests, latents, enlargement)
    return sample_latents(components, second, on_step=on_step[1], schedule=schedule)


def _enlarged(components: Components, latent: Tensor, size: tuple[int, int], by: Upscaling | str) -> Tensor:
    """A picture's latents at `size` (width and height in latents), enlarged by a model or by a built-in upscaler."""
    if (latent.shape[2], latent.shape[1]) == size:
        return latent
    if isinstance(by, str) and by in _LATENT_MODES:
        shape = size[1], size[0]
        return functional.interpolate(latent[None].float(), size=shape, mode=_LATENT_MODES[by])[0]
    wanted = size[0] * components.vae_scale_factor, size[1] * components.vae_scale_factor
    picture = decode(components, [latent])[0]
    if isinstance(by, Upscaling):
        return encode(components, by.picture(picture, wanted))
    return encode(components, picture.resize(wanted, Image.Resampling.LANCZOS))
