"""How long, how much at once, how often something is saved or shown."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.base import BASIC, Settings


class TrainingConfig(Settings):
    """Length and size of the training."""

    steps: Annotated[int, BASIC, Field(ge=1, le=1_000_000)] = 1500
    """How many times the LoRA is updated. About 100 showings of each picture is a start: pictures × 100 / batch size."""
    batch_size: Annotated[int, BASIC, Field(ge=1, le=64)] = 2
    """Pictures per forward pass. More is steadier and needs more memory."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=256)] = 1
    """Forward passes per update: works like a larger batch without its memory, and takes longer."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: much less memory, about a third slower."""
    offload_layers: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the UNet's frozen weights that stay in the computer's memory and come to the graphics card just before they are used: 0.5 frees half of their memory and takes longer. 0: none."""
    fused_backward: bool = False
    """Update each weight as soon as its gradient is there, so that gradients never all exist at once: saves 4 bytes for each trained number. The same result; needs max_grad_norm 0, and the whole gradient is never known at once, so it goes without what needs that."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients longer than this are shortened to it. 0 turns clipping off."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Keeps an average of the weights over the steps, and measures, shows and exports that: steadier results. 0.99 for a short training, 0.999 for one of thousands of steps; 0 turns it off."""
    on_nan: Literal["stop", "skip_batch", "lower_rate"] = "stop"
    """What is done when the loss becomes NaN or infinite: `stop`, and offer the others; `skip_batch` leaves that step out and goes on (for a picture that cannot be learned; watches each step, which costs a graphics card a little); `lower_rate` goes back to the last checkpoint and on with lower learning rates (for a rate that is too high)."""
    on_nan_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What `lower_rate` multiplies the learning rates with, each time."""
    on_nan_tries: Annotated[int, Field(ge=1, le=1000)] = 10
    """How often in a run one of these is done before it stops after all. A run that is then resumed with another remedy has as many tries for that."""
    deterministic: bool = True
    """Only ways of computing that give the same bits each time. Off: a graphics card may choose faster ones, and a resumed run is as good as one that was not interrupted, but not equal to the last bit."""
    seed: Annotated[int, BASIC, Field(ge=0, le=2**63 - 1)] = 42
    """The same seed, settings and pictures give the same LoRA on the same machine."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to compute. `auto` takes the fastest that is there."""
    num_devices: Annotated[int, Field(ge=1, le=1024)] = 1
    """Graphics cards that train together, each with `batch_size` pictures: an update sees batch size × devices pictures, as if the batch were that much larger. On the CPU, processes."""
    num_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads; 0 lets torch decide."""

    @property
    def global_batch_size(self) -> int:
        """Pictures of one forward pass on all devices."""
        return self.batch_size * self.num_devices


class ValidationConfig(Settings):
    """The validation loss: fixed pictures, noise and timesteps, so that it can be compared between steps and runs."""

    every: Annotated[int, Field(ge=0)] = 100
    """Steps between validations; it is always measured at the start and at the end. 0: only then."""
    num_pictures: Annotated[int, Field(ge=1, le=200)] = 8
    """How many pictures are measured."""
    num_timesteps: Annotated[int, Field(ge=1, le=50)] = 4
    """At how many evenly spread timesteps each picture is measured."""


class PreviewConfig(Settings):
    """Sample pictures made while training."""

    prompts: Annotated[list[str], BASIC, Field(max_length=16)] = []
    """Prompts of the sample pictures, one a line. Empty: captions of the data set."""
    every: Annotated[int, Field(ge=0)] = 250
    """Steps between samples; one set is always made at the start and at the end. 0: only then."""
    negative_prompt: str = ""
    """What the samples should not show."""
    num_inference_steps: Annotated[int, Field(ge=1, le=200)] = 20
    """Denoising steps of each sample. Fewer is faster and rougher."""
    guidance_scale: Annotated[float, Field(ge=0, le=30)] = 7.0
    """How strictly a sample follows its prompt."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 1234
    """Seed of the samples; it stays the same so that only the training changes them."""

    @field_validator("prompts")
    @classmethod
    def _no_empty_lines(cls, value: list[str]) -> list[str]:
        prompts = [prompt.strip() for prompt in value]
        if any("\x00" in prompt or len(prompt) > 5000 for prompt in prompts):
            raise ValueError("each prompt must be shorter than 5000 characters and hold no NUL character")
        return [prompt for prompt in prompts if prompt]


class SaveConfig(Settings):
    """Checkpoints and the exported file."""

    name: Annotated[str, BASIC, Field(max_length=100)] = ""
    """Name of the LoRA file. Empty: the name of the data set."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 250
    """Steps between checkpoints, from which a run can be resumed. One is always made when a run stops or ends."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many checkpoints are kept; the oldest goes only after the newest is complete."""
    export_every: Annotated[int, Field(ge=0)] = 0
    """Steps between LoRA files made along the way, for choosing the best later. 0: only at the end."""
    export_sum: bool = False
    """With adapter.on_top_of: also write one LoRA (`<name>-sum`) that does what those and the new one do together, exactly, their ranks side by side."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Number format of the LoRA file. fp16 is read by every tool; fp32 is exact and twice as large."""
