"""How a run keeps the weights of its base model."""

from __future__ import annotations

import torch

from trainer.config.run import RunConfig
from trainer.data.captions import varies
from trainer.errors import ConfigError
from trainer.models.storage import WeightStorage

_SHARES_MEMORY = ("cpu", "mps")


def keeps_text_encoders(config: RunConfig) -> bool:
    """Whether the text encoders are needed in each step: they are trained, or captions differ each time."""
    return bool(config.adapter.trains_text or config.adapter.embedding.num_vectors) or varies(config.data)


def weight_storage(config: RunConfig, device: torch.device) -> WeightStorage:
    """What the settings ask for.

    Text encoders that only fill the cache stay whole: they leave the device before the training, and captions are encoded
    as other programs will encode them.

    Raises: ConfigError: layers are to be offloaded from a device that has no memory of its own.
    """
    share = config.training.offload_layers
    if share and device.type in _SHARES_MEMORY:
        raise ConfigError(
            f"Layers cannot be offloaded from the device '{device.type}': it computes in the computer's own memory, so nothing "
            "would be freed.",
            where="training.offload_layers",
            fix="Set it to 0. model.quantization and training.gradient_checkpointing save memory there.",
        )
    texts = ("text_encoder", "text_encoder_2") if keeps_text_encoders(config) else ()
    return WeightStorage(config.model.quantization, ("unet", *texts), share)
