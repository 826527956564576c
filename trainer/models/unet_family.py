"""What all families with a UNet and a KL autoencoder have in common.

Sizes come from the configurations of the components, never from constants: a small model of the same classes works too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.config.adapter import AdapterConfig, PartLora, UnetLora
from trainer.config.blocks import part_lora
from trainer.config.targets import UnetTargets, is_target
from trainer.models import autoencoder
from trainer.models.conditioning import Conditioning
from trainer.models.words import divide_layers

if TYPE_CHECKING:
    from trainer.models.components import Components


class UNetFamily:
    """Latents, prediction and layers; a family adds its text encoders and its names."""

    zeroes_empty_negative = False

    def encode_images(self, components: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of `pixels` (`(batch, 3, height, width)` in [-1, 1])."""
        return autoencoder.encode_images(components, pixels)

    def decode_latents(self, components: Components, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], float32 `(batch, 3, height, width)`."""
        return autoencoder.decode_latents(components, latents)

    def predict(
        self, components: Components, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The UNet's prediction, float32."""
        dtype = components.dtype
        if conditioning.has_layers:
            divide_layers(components.unet)
        output = components.unet(
            noisy_latents.to(dtype), timesteps, encoder_hidden_states=conditioning.states.to(dtype), return_dict=False
        )
        return output[0].float()

    def target_modules(self, components: Components, config: AdapterConfig) -> dict[str, list[str]]:
        """Paths of the layers that `config` trains, by part, taken from the modules that are really there."""
        targets: dict[str, list[str]] = {}
        for part, model in components.adaptable.items():
            settings = part_lora(config, part)
            if settings.rank:
                targets[part] = target_paths(model, part, settings)
        return targets

    def pixel_multiple(self, components: Components) -> int:
        """The VAE's factor times the UNet's: each of its blocks but the last halves the latents."""
        return components.vae_scale_factor * 2 ** (len(components.unet.config.block_out_channels) - 1)


def unet_targets(unet: nn.Module, targets: UnetTargets) -> list[str]:
    """Paths of the UNet's layers in a named set."""
    return target_paths(unet, "unet", UnetLora(targets=targets))


def target_paths(model: nn.Module, part: str, settings: PartLora) -> list[str]:
    """Paths of a model's layers in the set that a part's settings name."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and is_target(part, settings, path, module.weight.shape)
    ]
