"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): two text encoders, a pooled vector, and the picture's framing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.models.conditioning import Conditioning
from trainer.models.text import AS_WRITTEN, PromptOptions, encode_chunks, encoder_tokens, to_chunks
from trainer.models.unet_family import UNetFamily
from trainer.models.words import divide_layers

if TYPE_CHECKING:
    from trainer.models.components import Components

# SDXL was trained on the last layer but one of both encoders, without the final layer norm.
_LAYER = 2


class StableDiffusionXL(UNetFamily):
    """The family of Stable Diffusion XL."""

    name = "sdxl"
    # The model was trained with zeros for "no prompt" as well; all tools use them where the negative prompt is empty.
    zeroes_empty_negative = True

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], options: PromptOptions = AS_WRITTEN
    ) -> Conditioning:
        """Hidden states of both encoders side by side, and the second one's pooled vector; differentiable through both.

        `clip_skip` 1 and 2 both read the last layer but one, which is what the model was made with; 3 the one before.
        """
        layer = -max(_LAYER, options.clip_skip)
        encoded = []
        for part, encoder in components.text_encoders.items():
            tokenizer, words = components.tokenizers[part], components.words.of(part)
            chunks = to_chunks(tokenizer, encoder_tokens(tokenizer, encoder), prompts, options, words)
            encoded.append(
                encode_chunks(encoder, chunks, lambda output: output.hidden_states[layer], hidden=True, words=words)
            )
        return Conditioning(torch.cat([each.states for each in encoded], -1), encoded[-1].pooled)

    def predict(
        self, components: Components, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The UNet's prediction, float32."""
        dtype = components.dtype
        if conditioning.has_layers:
            divide_layers(components.unet)
        if conditioning.pooled is None or conditioning.frames is None:
            raise ValueError("SDXL needs the pooled vector and the frames of its pictures")
        added = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.frames}
        output = components.unet(
            noisy_latents.to(dtype),
            timesteps,
            encoder_hidden_states=conditioning.states.to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )
        return output[0].float()
