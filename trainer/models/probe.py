"""Asks a model itself what it predicts, where its file does not tell (Stable Diffusion 2.x)."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from trainer.models.components import Components
from trainer.objectives.diffusion import PredictionType

_LAST_TIMESTEP = 999
_SIDE = 16
_LIKE_NOISE = 0.5


def probe_prediction_type(components: Components) -> PredictionType:
    """Whether the UNet answers pure noise with that noise (epsilon) or with something else (v_prediction).

    At the last timestep the input is nearly nothing but noise. A model of epsilon gives it back; v is there nearly the
    negative of a clean picture, of which the noise tells nothing.
    """
    shape = (1, components.latent_channels, _SIDE, _SIDE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(components.device)
    # An inpainting model is shown that all is masked.
    shown = [torch.ones_like(noise[:, :1]), torch.zeros_like(noise)] if components.is_inpainting else []
    timesteps = torch.tensor([_LAST_TIMESTEP], device=components.device)
    frame = torch.zeros(1, 6, device=components.device)
    with torch.no_grad():
        conditioning = components.family.encode_prompts(components, [""]).framed(frame)
        answer = components.family.predict(components, torch.cat([noise, *shown], 1), timesteps, conditioning)
    likeness = float(cosine_similarity(answer.flatten(1), noise.flatten(1)).mean())
    return "epsilon" if likeness > _LIKE_NOISE else "v_prediction"
