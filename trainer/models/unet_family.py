"""What all families with a UNet and a KL autoencoder have in common.

Sizes come from the configurations of the components, never from constants: a small model of the same classes works too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from trainer.config.adapter import AdapterConfig
from trainer.models import autoencoder
from trainer.models.conditioning import Conditioning
from trainer.models.words import divide_layers

if TYPE_CHECKING:
    from trainer.models.components import Components

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_MLP = ("ff.net.0.proj", "ff.net.2")
_TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_TEXT_MLP = ("fc1", "fc2")
# Loaders of other tools skip these without a word, so that training them would be lost on export.
_NEVER = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")


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
        if config.unet.rank:
            targets["unet"] = unet_targets(components.unet, config.unet.targets)
        if config.text_encoder.rank:
            endings = _TEXT_ATTENTION + (_TEXT_MLP if config.text_encoder.targets == "attention+mlp" else ())
            for part, encoder in components.text_encoders.items():
                targets[part] = _ending_in(encoder, endings)
        return targets

    def pixel_multiple(self, components: Components) -> int:
        """The VAE's factor times the UNet's: each of its blocks but the last halves the latents."""
        return components.vae_scale_factor * 2 ** (len(components.unet.config.block_out_channels) - 1)


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
