"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, a KL autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.models.conditioning import Conditioning
from trainer.models.text import AS_WRITTEN, PromptOptions, encode_chunks, encoder_tokens, to_chunks
from trainer.models.unet_family import UNetFamily

if TYPE_CHECKING:
    from trainer.models.components import Components


class StableDiffusion1(UNetFamily):
    """The family of Stable Diffusion 1.x."""

    name = "sd1"

    def encode_prompts(
        self, components: Components, prompts: Sequence[str], options: PromptOptions = AS_WRITTEN
    ) -> Conditioning:
        """Hidden states of the prompts; differentiable through the text encoder.

        `clip_skip` 2 reads the last layer but one, through the final layer norm as every SD 1.x tool does.
        """
        encoder, tokenizer = components.text_encoder, components.tokenizer
        words = components.words.of("text_encoder")
        chunks = to_chunks(tokenizer, encoder_tokens(tokenizer, encoder), prompts, options, words)
        skip = options.clip_skip
        if skip == 1:
            encoded = encode_chunks(encoder, chunks, lambda output: output.last_hidden_state, hidden=False, words=words)
        else:
            encoded = encode_chunks(
                encoder,
                chunks,
                lambda output: encoder.final_layer_norm(output.hidden_states[-skip]),
                hidden=True,
                words=words,
            )
        return Conditioning(encoded.states)
