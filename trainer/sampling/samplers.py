"""Samplers by the names that people know, as diffusers schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

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
        has_eta: whether how much noise it puts in anew can be chosen.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws_noise: bool = False
    has_eta: bool = False


def _of_diffusers(module: str, name: str) -> str:
    return f"diffusers.schedulers.scheduling_{module}:{name}Scheduler"


_EULER = _of_diffusers("euler_discrete", "EulerDiscrete")
_MULTISTEP = _of_diffusers("dpmsolver_multistep", "DPMSolverMultistep")
_SINGLESTEP = _of_diffusers("dpmsolver_singlestep", "DPMSolverSinglestep")
_DPM2 = _of_diffusers("k_dpm_2_discrete", "KDPM2Discrete")
_DPM2_ANCESTRAL = _of_diffusers("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscrete")
_UNIPC = _of_diffusers("unipc_multistep", "UniPCMultistep")
_HEUN = _of_diffusers("heun_discrete", "HeunDiscrete")
_LMS = "trainer.sampling.lms:ExactLMSDiscreteScheduler"
_DPM_SDE = "trainer.sampling.dpm_sde:DPMSolverSDEScheduler"
_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_2M_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_3M_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
_KARRAS = {"use_karras_sigmas": True}  # arXiv 2206.00364, equation 5
_EXPONENTIAL = {"use_exponential_sigmas": True}

SAMPLERS: dict[SamplerName, Sampler] = {
    "DDIM": Sampler(_of_diffusers("ddim", "DDIM"), {"clip_sample": False, "set_alpha_to_one": False}, True, True),
    "Euler": Sampler(_EULER),
    "Euler a": Sampler(_of_diffusers("euler_ancestral_discrete", "EulerAncestralDiscrete"), draws_noise=True),
    "Euler Karras": Sampler(_EULER, _KARRAS),
    "Euler Exponential": Sampler(_EULER, _EXPONENTIAL),
    "Euler Beta": Sampler("trainer.sampling.spaced:BetaEulerScheduler", _EXPONENTIAL),
    "DPM++ 2M": Sampler(_MULTISTEP, _2M),
    "DPM++ 2M Karras": Sampler(_MULTISTEP, _2M | _KARRAS),
    "DPM++ 2M Exponential": Sampler(_MULTISTEP, _2M | _EXPONENTIAL),
    "DPM++ 2M Beta": Sampler("trainer.sampling.spaced:BetaDPMSolverMultistepScheduler", _2M | _EXPONENTIAL),
    "DPM++ 2M SDE": Sampler(_MULTISTEP, _2M_SDE, True),
    "DPM++ 2M SDE Karras": Sampler(_MULTISTEP, _2M_SDE | _KARRAS, True),
    "DPM++ 2M SDE Exponential": Sampler(_MULTISTEP, _2M_SDE | _EXPONENTIAL, True),
    "DPM++ 3M SDE": Sampler(_MULTISTEP, _3M_SDE, True),
    "DPM++ 3M SDE Karras": Sampler(_MULTISTEP, _3M_SDE | _KARRAS, True),
    "DPM++ 3M SDE Exponential": Sampler(_MULTISTEP, _3M_SDE | _EXPONENTIAL, True),
    "DPM++ SDE": Sampler(_DPM_SDE, {}, True, True),
    "DPM++ SDE Karras": Sampler(_DPM_SDE, _KARRAS, True, True),
    "DPM++ 2S": Sampler(_SINGLESTEP, {**_2M, "lower_order_final": True}),
    "DPM2": Sampler(_DPM2),
    "DPM2 Karras": Sampler(_DPM2, _KARRAS),
    "DPM2 a": Sampler(_DPM2_ANCESTRAL, {}, True),
    "DPM2 a Karras": Sampler(_DPM2_ANCESTRAL, _KARRAS, True),
    "UniPC": Sampler(_UNIPC),
    "UniPC Karras": Sampler(_UNIPC, _KARRAS),
    "DEIS": Sampler(_of_diffusers("deis_multistep", "DEISMultistep")),
    "Heun": Sampler(_HEUN),
    "Heun Karras": Sampler(_HEUN, _KARRAS),
    "LMS": Sampler(_LMS),
    "LMS Karras": Sampler(_LMS, _KARRAS),
    "PNDM": Sampler(_of_diffusers("pndm", "PNDM"), {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "LCM": Sampler(_of_diffusers("lcm", "LCM"), {"set_alpha_to_one": False}, True),
    "TCD": Sampler(_of_diffusers("tcd", "TCD"), {"set_alpha_to_one": False}, True, True),
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
                fix=f"Choose one of: {', '.join(_names_with('rescale_betas_zero_snr'))}.",
            )
        # Only then is the first step the timestep that is pure noise (arXiv 2305.08891, section 3.3).
        model["timestep_spacing"] = "trailing"
    return scheduler_class(**model, **sampler.options)


def _names_with(option: str) -> list[str]:
    classes = {name: load_object(sampler.scheduler) for name, sampler in SAMPLERS.items()}
    return [name for name, scheduler in classes.items() if option in scheduler._get_init_keys(scheduler)]


def set_steps(scheduler: Any, num_steps: int, device: torch.device) -> None:
    """Choose a new scheduler's timesteps.

    LCM and TCD take theirs from those that the model was distilled with, 50 as published; more steps than that are spread over
    as many as are asked for.
    """
    options = {}
    if "original_inference_steps" in scheduler.config:
        options["original_inference_steps"] = max(num_steps, scheduler.config.original_inference_steps)
    scheduler.set_timesteps(num_steps, device=device, **options)


def last_steps(scheduler: Any, share: float) -> list[Tensor]:
    """The timesteps of the last `share` (0 to 1) of the steps; the scheduler begins there. At least one where the share is not 0.

    A solver of order 2 asks the model twice a step, so there may be more of them than steps.
    """
    everything: list[Tensor] = list(scheduler.timesteps)
    total: int = scheduler.num_inference_steps
    count = min(total, max(1, int(total * share + 1e-6))) if share > 0 else 0
    skipped = total - count
    if not skipped:
        return everything
    if "skip_prk_steps" in scheduler.config:
        # PLMS asks for its second timestep twice, wherever it begins.
        tail = everything[skipped + 1 :] if count else []
        return tail[:2] + tail[1:]
    begin = skipped * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return everything[begin:] if count else []


def noise_levels(scheduler: Any, step: int, timestep: Tensor) -> tuple[float, float]:
    """How much of the picture and of the noise the model sees: `signal` and `noise`, whose squares add up to 1.

    Args:
        scheduler: with its timesteps chosen.
        step: which of the timesteps, from 0 at the first that is used.
        timestep: the same one; for schedulers without sigmas.
    """
    if not hasattr(scheduler, "sigmas"):
        alphas = scheduler.alphas_cumprod
        alpha = float(alphas[min(max(round(float(timestep)), 0), len(alphas) - 1)])
        return max(alpha, 1e-8) ** 0.5, (1 - alpha) ** 0.5
    index = (scheduler.begin_index or 0) + step
    if hasattr(scheduler, "sigmas_interpol") and step % 2 == 1:
        # The second stage of DPM2 and its kin is between two sigmas; the ancestral one lists them a place earlier.
        sigma = float(scheduler.sigmas_interpol[index - isinstance(scheduler, KDPM2AncestralDiscreteScheduler)])
    else:
        sigma = float(scheduler.sigmas[index])
    length = (1 + sigma**2) ** 0.5
    return 1 / length, sigma / length


def step_options(name: SamplerName, generators: list[torch.Generator], eta: float | None) -> dict[str, Any]:
    """What a sampler's `step` is given beside prediction, timestep and latents.

    Raises: ConfigError: `eta` is given to a sampler whose noise cannot be chosen.
    """
    sampler = SAMPLERS[name]
    if eta is not None and not sampler.has_eta:
        users = ", ".join(other for other, row in SAMPLERS.items() if row.has_eta)
        raise ConfigError(
            f"The sampler '{name}' has no eta: its noise is part of its formula.",
            where="eta",
            fix=f"Leave eta at -1, or choose one of: {users}.",
        )
    options: dict[str, Any] = {"generator": generators} if sampler.draws_noise else {}
    return options if eta is None else {**options, "eta": eta}
