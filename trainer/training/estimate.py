"""What a run will need of the device's memory, part by part, counted on a model of shapes alone.

A step (forward and backward, with the run's own adapter, packing and checkpointing) runs on the meta device, and every tensor
counts from when it is made until it is freed. What cannot be counted, because it depends on the device, the working memory
of kernels and the gaps between tensors, is a share on top; `docs/memory.md` compares estimates with measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.adapters.method import build_method
from trainer.base_models import resolve_trainable
from trainer.config.run import RunConfig
from trainer.models.components import Components
from trainer.models.conditioning import Conditioning
from trainer.models.devices import pick_device, pick_dtype
from trainer.models.frozen import FrozenLayer
from trainer.models.neutral import skip_neutral_divisions
from trainer.models.shapes import META, shapes_of
from trainer.models.text import CHUNK_TOKENS
from trainer.models.words import token_table
from trainer.paths import DataFolder
from trainer.training.live_bytes import LiveBytes, fused_attention
from trainer.training.storage import keeps_text_encoders, weight_storage

_CHUNK_LENGTH = CHUNK_TOKENS + 2
_PLAIN_ATTENTION_TOKENS = 256
_IN_FLIGHT = 3
# Python with torch, diffusers and transformers, measured on Linux; the context of a CUDA process, as it is usually reported.
_PROCESS = {"cpu": 480_000_000}
_CONTEXT = 600_000_000
# What lies unused between tensors, and the working memory of kernels, for each byte of tensors. Fitted to measured peaks on a
# processor; on other devices a guess.
_GAPS = {"cpu": 0.2}
_OTHER_GAPS = 0.1


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device.

    Attributes:
        parts: what is there in a training step, by name; they add up to `phases["training"]`.
        phases: the most in each phase of the run.
    """

    parts: dict[str, int]
    phases: dict[str, int]

    @property
    def peak(self) -> int:
        """The most that is needed at any time."""
        return max(self.phases.values())


def estimate(config: RunConfig, data: DataFolder) -> Estimate:
    """Estimate a run's peak memory on the device that it will use: of the process where that is the processor.

    Raises: ModelFileError: there is no such model. ConfigError, ResourceError: the device or a number format cannot be had.
    """
    device = pick_device(config.training.device)
    dtype = pick_dtype(config.model.precision, device)
    resolve_trainable(config.model.base, data, has_vae=bool(config.model.vae))
    components = shapes_of(config.model, data, dtype, weight_storage(config, device))
    skip_neutral_divisions(components.unet)
    unet, vae = _resident(components.unet), _resident(components.vae)
    texts = sum(_resident(encoder) for encoder in components.text_encoders.values())
    keeps_all = device.type == "cpu"
    adapter = build_method(config.adapter, config.data.trigger_word)
    adapter.attach(components, 0)
    weights = [weight for group in adapter.parameter_groups().values() for weight in group]
    trained = sum(weight.numel() for weight in weights)
    state = sum(tensor.nbytes for tensor in adapter.state_dict().values()) + (
        4 * trained if config.training.ema_decay else 0
    )
    optimizer = round(trained * _state_bytes(config))
    gradients = 0 if config.training.fused_backward else 4 * trained
    # Not always the largest: small pictures have another attention kernel.
    live = max(_step_bytes(config, components, device, resolution) for resolution in config.data.all_resolutions)
    encoding, decoding = _picture_bytes(config, components)
    overhead, share = _PROCESS.get(device.type, _CONTEXT), _GAPS.get(device.type, _OTHER_GAPS)
    parts = {
        "UNet": unet,
        "text encoders": texts if keeps_all or keeps_text_encoders(config) else 0,
        "VAE": vae if keeps_all else 0,
        "adapter": state,
        "optimizer": optimizer,
        "gradients": gradients,
        "activations": max(0, live - gradients),
    }
    tensors = {
        "caching": unet + texts + vae + encoding,
        "training": sum(parts.values()),
        "sample pictures": unet + texts + vae + state + optimizer + gradients + decoding,
    }
    phases = {phase: round(count * (1 + share)) + overhead for phase, count in tensors.items()}
    parts |= {"gaps and working memory": phases["training"] - overhead - tensors["training"], "process": overhead}
    return Estimate(parts, phases)


def _state_bytes(config: RunConfig) -> float:
    """Of the optimizer, for each trained number, while it trains."""
    # Two states of a byte, and constants for blocks of 256.
    return 2.1 if config.optimizer.name.endswith("8bit") else config.optimizer.facts.state_bytes


def _resident(model: nn.Module) -> int:
    """Bytes of a model's weights on the device; of those kept elsewhere what is on its way."""
    frozen = [module for module in model.modules() if isinstance(module, FrozenLayer)]
    away = [sum(tensor.nbytes for tensor in layer.kept().values()) for layer in frozen if layer.is_away]
    total = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return total - sum(away) + sum(sorted(away)[-_IN_FLIGHT:])


def _step_bytes(config: RunConfig, components: Components, device: torch.device, resolution: int) -> int:
    """The most that a step's forward and backward pass adds to what was there, the gradients included."""
    unet, encoders = components.unet.train(), components.text_encoders
    side = resolution // components.vae_scale_factor
    if config.training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        for encoder in encoders.values() if config.adapter.trains_text else ():
            encoder.train()
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
    # As `trainer.models.attention` chooses.
    is_plain = device.type == "cpu" and side * side <= _PLAIN_ATTENTION_TOKENS
    is_plain = is_plain and not config.training.gradient_checkpointing
    batch = config.training.batch_size
    if config.training.fused_backward:
        # As each is used as soon as it is there.
        for weight in (weight for part in components.adaptable.values() for weight in part.parameters()):
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(_forget)
    with LiveBytes() as live, nullcontext() if is_plain else fused_attention():
        live.know(tensor for part in components.adaptable.values() for tensor in (*part.parameters(), *part.buffers()))
        latents = torch.empty(batch, int(unet.config.in_channels), side, side, device=META)
        timesteps = torch.empty(batch, dtype=torch.int64, device=META)
        conditioning = _conditioning(config, components, batch)
        predicted = components.family.predict(components, latents, timesteps, conditioning)
        (predicted - latents).square().mean().backward()
        del predicted, conditioning
    return live.peak


def _forget(weight: Tensor) -> None:
    weight.grad = None


def _conditioning(config: RunConfig, components: Components, batch: int) -> Conditioning:
    chunks = max(1, config.data.max_caption_tokens // CHUNK_TOKENS)
    states: list[Tensor] = []
    pooled: Tensor | None = None
    vectors = config.adapter.embedding.num_vectors
    trains = bool(config.adapter.trains_text or vectors)
    for encoder in components.text_encoders.values():
        ids = torch.zeros(batch * chunks, _CHUNK_LENGTH, dtype=torch.int64, device=META)
        with torch.set_grad_enabled(trains), _learned_inputs(encoder) if vectors else nullcontext():
            output: Any = encoder(ids)
        states.append(output.last_hidden_state.reshape(batch, chunks * _CHUNK_LENGTH, -1))
        pooled = getattr(output, "text_embeds", None)
    frames = torch.zeros(batch, 6, device=META) if pooled is not None else None
    return Conditioning(torch.cat(states, -1), None if pooled is None else pooled[:batch], frames)


@contextmanager
def _learned_inputs(encoder: nn.Module) -> Iterator[None]:
    """Learned vectors stand among an encoder's inputs, so that its whole graph is kept for them."""
    hook = token_table(encoder).register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))
    try:
        yield
    finally:
        hook.remove()


def _picture_bytes(config: RunConfig, components: Components) -> tuple[int, int]:
    """The most that encoding a picture and decoding one add to the weights."""
    vae: Any = components.vae
    side = max(config.data.all_resolutions) // components.vae_scale_factor
    found: list[int] = []
    for run in (
        lambda: (
            vae.encode(
                torch.empty(1, 3, *[max(config.data.all_resolutions)] * 2, dtype=vae.dtype, device=META)
            ).latent_dist
        ),
        lambda: vae.decode(torch.empty(1, int(vae.config.latent_channels), side, side, dtype=vae.dtype, device=META)),
    ):
        with torch.no_grad(), LiveBytes() as live, fused_attention():
            live.know((*vae.parameters(), *vae.buffers()))
            run()
        found.append(live.peak)
    return found[0], found[1]
