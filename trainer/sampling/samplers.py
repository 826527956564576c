"""Samplers by the names that people know, as diffusers schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from trainer.config.generate import SamplerName
from trainer.errors import ConfigError
from trainer.objects import load_object

# What a scheduler config says of the model itself. The rest of it belongs to the scheduler class it was written for.
_MODEL_KEYS = (
    "beta_start", "beta_end", "beta_schedule", "trained_betas", "num_train_timesteps", "prediction_type",
    "rescale_betas_zero_snr", "steps_offset",
)  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers and the options that make it the sampler of that name.

    Attributes:
        scheduler: `module:class`.
        draws_noise: whether its steps draw noise, from the picture's own generator.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws_noise: bool = False


_MULTISTEP = "diffusers.schedulers.scheduling_dpmsolver_multistep:DPMSolverMultistepScheduler"
SAMPLERS: dict[SamplerName, Sampler] = {
    "DDIM": Sampler(
        "diffusers.schedulers.scheduling_ddim:DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}
    ),
    "Euler": Sampler("diffusers.schedulers.scheduling_euler_discrete:EulerDiscreteScheduler"),
    "Euler a": Sampler(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete:EulerAncestralDiscreteScheduler", draws_noise=True
    ),
    "DPM++ 2M": Sampler(_MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "DPM++ 2M Karras": Sampler(
        _MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}
    ),
    "DPM++ 2M SDE Karras": Sampler(
        _MULTISTEP,
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
        draws_noise=True,
    ),
    "UniPC": Sampler("diffusers.schedulers.scheduling_unipc_multistep:UniPCMultistepScheduler"),
    "Heun": Sampler("diffusers.schedulers.scheduling_heun_discrete:HeunDiscreteScheduler"),
    "LMS": Sampler("trainer.sampling.lms:ExactLMSDiscreteScheduler"),
    "PNDM": Sampler(
        "diffusers.schedulers.scheduling_pndm:PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}
    ),
}
if set(SAMPLERS) != set(get_args(SamplerName)):
    raise RuntimeError("SAMPLERS and SamplerName differ")


def build_scheduler(name: SamplerName, scheduler_config: Mapping[str, Any]) -> SchedulerMixin:
    """A new scheduler for one set of pictures (schedulers remember the steps before).

    Args:
        name: a key of SAMPLERS.
        scheduler_config: of the base model; only what it says of the model is taken over.

    Raises: ConfigError: there is no sampler of this name, or it cannot start from the pure noise of a model with zero
        terminal SNR.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"There is no sampler named '{name}'.", where="sampler", fix=f"Choose one of: {', '.join(SAMPLERS)}."
        )
    sampler = SAMPLERS[name]
    scheduler_class = load_object(sampler.scheduler)
    known = scheduler_class._get_init_keys(scheduler_class)
    model = {key: scheduler_config[key] for key in _MODEL_KEYS if key in scheduler_config and key in known}
    if scheduler_config.get("rescale_betas_zero_snr"):
        if "rescale_betas_zero_snr" not in known:
            raise ConfigError(
                f"The sampler '{name}' cannot be used with this base model, whose last timestep is pure noise.",
                where="sampler",
                fix="Choose Euler, Euler a, DDIM, UniPC or one of DPM++.",
            )
        # Only then is the first step the timestep that is pure noise (arXiv 2305.08891, section 3.3).
        model["timestep_spacing"] = "trailing"
    return scheduler_class(**model, **sampler.options)
