"""Which base model is trained, and in which precision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings

EMBEDDED_MODEL = "inkwash-tiny"


class BaseChoice(Settings):
    """A base model, and what to do otherwise than it says of itself."""

    base: Annotated[str, BASIC, Field(min_length=1)] = EMBEDDED_MODEL
    """The base model: the name of one in the list, the path of a single file or of a diffusers folder, or the id of one in the Hugging Face cache (owner/name). A LoRA fits the family of the model that it was trained on."""
    vae: str = ""
    """Path of a VAE to use instead of the model's own: a `.safetensors` file, or a diffusers folder. Empty: its own."""
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """What the model predicts: the noise (epsilon) or the velocity (v_prediction). `auto` takes what the model says of itself; the wrong one gives noise instead of pictures."""
    zero_terminal_snr: Literal["auto", "yes", "no"] = "auto"
    """Whether the model's last timestep is pure noise (arXiv 2305.08891), as in many v-prediction fine-tunes. `auto` takes what the model says of itself."""


class ModelConfig(BaseChoice):
    """The base model."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the frozen base model. `auto` takes bf16 where the device computes in it, else fp16 on a GPU, else fp32; the adapter is always trained in fp32."""
    quantization: Literal["none", "nf4", "int8", "fp8"] = "none"
    """How the frozen base model is kept in memory: as it is, in 4 bits (`nf4`, QLoRA: a quarter of bf16), or in 8 (`int8` exacter, `fp8` the format of newer cards). The LoRA is an ordinary one and works on the whole model. `docs/memory.md` has what it costs."""
    clip_skip: Annotated[int, Field(ge=1, le=4)] = 1
    """Which of the text encoder's last layers is read: 1 the last, 2 the one before it (many anime models were made with 2). Use the number that the base model was made with."""
