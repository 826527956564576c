"""Stable Diffusion 1.x: one CLIP text encoder, a UNet with cross-attention, a KL autoencoder.

Sizes come from the configurations of the components, never from constants: a small model of the same classes works too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.config.adapter import LoraConfig
from trainer.lora_files.formats.kohya import kohya_name
from trainer.models.components import Components

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_MLP = ("ff.net.0.proj", "ff.net.2")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_MLP = ("fc1", "fc2")
# Loaders of other tools skip these without a word, so that training them would be lost on export.
_NEVER = ("conv_in", "conv_out", "time_embedding.")


class StableDiffusion1:
    """The family of Stable Diffusion 1.x."""

    name = "sd1"

    def encode_prompts(self, components: Components, prompts: Sequence[str], clip_skip: int = 1) -> Tensor:
        """Hidden states of the prompts, shape `(batch, tokens, width)`.

        `clip_skip` 2 reads the last layer but one, through the final layer norm as every SD 1.x tool does.
        Prompts beyond the encoder's number of tokens are cut.
        """
        encoder, tokenizer = components.text_encoder, components.tokenizer
        length = max_tokens(components)
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids.to(encoder.device)
        if clip_skip == 1:
            return encoder(ids).last_hidden_state
        hidden = encoder(ids, output_hidden_states=True).hidden_states
        return encoder.final_layer_norm(hidden[-clip_skip])

    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of `pixels` (`(batch, 3, height, width)` in [-1, 1])."""
        vae = components.vae
        with torch.no_grad():
            distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        factor = vae.config.scaling_factor
        return distribution.mean.float() * factor, torch.exp(0.5 * distribution.logvar.float()) * factor

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], float32 `(batch, 3, height, width)`."""
        vae = components.vae
        with torch.no_grad():
            pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, components: Components, noisy_latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The UNet's prediction, float32."""
        dtype = components.dtype
        output = components.unet(
            noisy_latents.to(dtype), timesteps, encoder_hidden_states=states.to(dtype), return_dict=False
        )
        return output[0].float()

    def target_modules(self, components: Components, config: LoraConfig) -> dict[str, list[str]]:
        """Paths of the layers that `config` trains, by part, taken from the modules that are really there."""
        targets: dict[str, list[str]] = {}
        if config.unet.rank:
            targets["unet"] = unet_targets(components.unet, config.unet.targets)
        if config.text_encoder.rank:
            endings = _TEXT_ATTENTION + (_TEXT_MLP if config.text_encoder.targets == "attention+mlp" else ())
            targets["text_encoder"] = _ending_in(components.text_encoder, endings)
        return targets

    def pixel_multiple(self, components: Components) -> int:
        """The VAE's factor times the UNet's: each of its blocks but the last halves the latents."""
        return components.vae_scale_factor * 2 ** (len(components.unet.config.block_out_channels) - 1)

    def kohya_name(self, module_path: str) -> str:
        """The layer's name in the kohya layout."""
        return kohya_name(module_path)


def max_tokens(components: Components) -> int:
    """How many tokens the text encoder takes, with the two marks of start and end."""
    # Tokenizers saved without a length report 1e30.
    return min(components.tokenizer.model_max_length, components.text_encoder.config.max_position_embeddings)


def unet_targets(unet: nn.Module, targets: str) -> list[str]:
    """Paths of the UNet's layers in a named set of `trainer.config.adapter.UnetTargets`."""
    if targets == "attention":
        return _ending_in(unet, _ATTENTION)
    if targets == "attention+mlp":
        return _ending_in(unet, _ATTENTION + _MLP)
    if targets == "all-linear":
        return [path for path, module in _candidates(unet) if _is_linear(path, module)]
    if targets == "all+conv":
        return [path for path, _ in _candidates(unet)]
    raise ValueError(f"unknown set of layers: {targets!r}")


def _candidates(unet: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (path, module)
        for path, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not path.startswith(_NEVER)
    ]


def _is_linear(path: str, module: nn.Module) -> bool:
    # SD 1.x writes the projections around its attention as 1 x 1 convolutions, which are linear layers.
    # The shortcuts of the residual blocks are 1 x 1 too, but belong to the convolutions (LoCon) in every tool.
    return isinstance(module, nn.Linear) or path.endswith((".proj_in", ".proj_out"))


def _ending_in(model: nn.Module, endings: tuple[str, ...]) -> list[str]:
    wanted = tuple(f".{ending}" for ending in endings)
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and path.endswith(wanted)]
