"""Samplers against the formulas they are named for, and from the middle of their steps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.test_samplers import SMALL, components  # noqa: F401 - a fixture
from trainer.config.generate import SamplerName
from trainer.errors import ConfigError
from trainer.models.components import Components
from trainer.sampling.denoise import rescaled
from trainer.sampling.dpm_sde import DPMSolverSDEScheduler
from trainer.sampling.sampler import sample
from trainer.sampling.samplers import SAMPLERS, build_scheduler, last_steps, noise_levels, set_steps, step_options
from trainer.sampling.spaced import beta_quantiles

CONFIG = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "prediction_type": "epsilon",
}  # fmt: skip
CPU = torch.device("cpu")


def model_sigmas() -> np.ndarray:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
    alphas = np.cumprod(1 - betas)
    return ((1 - alphas) / alphas) ** 0.5


def distinct_sigmas(name: SamplerName, steps: int) -> np.ndarray:
    scheduler = build_scheduler(name, CONFIG)
    set_steps(scheduler, steps, CPU)
    return np.array(list(dict.fromkeys(float(sigma) for sigma in scheduler.sigmas)))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.endswith(("Karras", "Exponential"))])
def test_sigmas_are_those_of_their_name(name: SamplerName) -> None:
    steps, known = 9, model_sigmas()
    if name.endswith("Karras"):
        # arXiv 2206.00364, equation 5, with rho 7.
        ends = known[-1] ** (1 / 7), known[0] ** (1 / 7)
        expected = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** 7
    else:
        expected = np.exp(np.linspace(math.log(known[-1]), math.log(known[0]), steps))
    assert distinct_sigmas(name, steps) == pytest.approx([*expected, 0.0], rel=2e-4)


def test_beta_steps_lie_at_the_quantiles_of_the_distribution() -> None:
    probabilities = np.linspace(0.05, 0.95, 7)
    for place, probability in zip(beta_quantiles(probabilities), probabilities, strict=True):
        # The density is infinite at 0, so its integral from there is taken over x = y^5.
        y = np.linspace(0, place ** (1 / 5), 400_001)[1:]
        density = (y**5) ** -0.4 * (1 - y**5) ** -0.4 * 5 * y**4
        whole = math.gamma(0.6) ** 2 / math.gamma(1.2)
        assert float(np.trapezoid(density, y)) / whole == pytest.approx(probability, abs=2e-4)
    known = model_sigmas()
    for name in ("Euler Beta", "DPM++ 2M Beta"):
        sigmas = distinct_sigmas(name, 8)
        assert sigmas[0] == pytest.approx(known[-1], rel=1e-4)
        assert sigmas[4] == pytest.approx(np.exp(np.interp(499.5, np.arange(1000), np.log(known))), rel=1e-3)
        assert all(np.diff(sigmas) < 0)


def model_answer(latents: Tensor, sigma: float) -> Tensor:
    """Stands for a model: some noise that depends on all it is given."""
    return torch.sin(latents * 0.7 + sigma)


@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_dpm_sde_is_the_formula_of_k_diffusion(eta: float) -> None:
    """`sample_dpmpp_sde` as published, in t = -log sigma, with the same increments of its Brownian motion."""
    scheduler = build_scheduler("DPM++ SDE Karras", CONFIG)
    assert isinstance(scheduler, DPMSolverSDEScheduler)
    set_steps(scheduler, 6, CPU)
    sigmas = [float(sigma) for sigma in dict.fromkeys(float(sigma) for sigma in scheduler.sigmas)]
    first = torch.randn((1, 4, 4, 4), generator=torch.Generator().manual_seed(1)) * sigmas[0]
    found, generator = first, torch.Generator().manual_seed(5)
    for index, timestep in enumerate(scheduler.timesteps):
        model_input = scheduler.scale_model_input(found, timestep)
        signal, noise = noise_levels(scheduler, index, timestep)
        answer = model_answer(model_input / signal, noise / signal)
        found = scheduler.step(answer, timestep, found, generator=[generator], eta=eta).prev_sample

    def ancestral(start: float, end: float) -> tuple[float, float]:
        up = min(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
        return (end**2 - up**2) ** 0.5, up

    generator, x = torch.Generator().manual_seed(5), first
    for sigma, end in pairwise(sigmas):
        denoised = x - sigma * model_answer(x, sigma)
        if end == 0:
            x = denoised
            break
        t, t_end = -math.log(sigma), -math.log(end)
        middle = math.exp(-(t + (t_end - t) / 2))
        halves = [torch.randn(x.shape, generator=generator) for _ in range(2)]
        down, up = ancestral(sigma, middle)
        t_down = -math.log(down)
        x_2 = (down / sigma) * x - math.expm1(t - t_down) * denoised + halves[0] * up
        denoised_2 = x_2 - middle * model_answer(x_2, middle)
        down, up = ancestral(sigma, end)
        t_down = -math.log(down)
        motion = halves[0] * (sigma - middle) ** 0.5 + halves[1] * (middle - end) ** 0.5
        x = (down / sigma) * x - math.expm1(t - t_down) * denoised_2 + motion / (sigma - end) ** 0.5 * up
    # float32, at values around 50.
    assert torch.allclose(found, x, atol=2e-3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.01])
def test_every_sampler_begins_in_the_middle_and_reaches_what_the_model_has_in_mind(
    name: SamplerName, share: float
) -> None:
    """With a model that always means the same picture, each solver ends at that picture, wherever it begins."""
    scheduler = build_scheduler(name, CONFIG)
    set_steps(scheduler, 12, CPU)
    timesteps = last_steps(scheduler, share)
    picture, noise = (torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    latents = noise * scheduler.init_noise_sigma
    if share < 1:
        latents = scheduler.add_noise(picture, noise, timesteps[0].expand(2))
    options = step_options(name, [torch.Generator().manual_seed(3)] * 2, None)
    for step, timestep in enumerate(timesteps):
        model_input = scheduler.scale_model_input(latents, timestep)
        signal, level = noise_levels(scheduler, step, timestep)
        assert signal**2 + level**2 == pytest.approx(1, abs=1e-5)
        if step == 0 and share < 1:
            assert torch.allclose(model_input, signal * picture + level * noise, atol=1e-4)
        answer = (model_input - signal * picture) / level
        latents = scheduler.step(answer, timestep, latents, **options).prev_sample
    # DDIM and its kin end at the first timestep, where a thirtieth is noise.
    assert (latents - picture).abs().max() < 0.15


def test_eta_is_how_much_noise_is_put_in_anew(components: Components) -> None:  # noqa: F811
    def picture(name: SamplerName, eta: float | None) -> bytes:
        return sample(components, [replace(SMALL, sampler=name, eta=eta)])[0].tobytes()

    assert picture("DDIM", None) == picture("DDIM", 0.0) != picture("DDIM", 1.0)
    assert picture("DPM++ SDE", None) == picture("DPM++ SDE", 1.0) != picture("DPM++ SDE", 0.5)
    with pytest.raises(ConfigError, match=r"Euler a.*has no eta"):
        picture("Euler a", 0.5)


def test_guidance_rescale_is_the_published_formula(components: Components) -> None:  # noqa: F811
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided, with_prompt = (torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(s)) * 3 for s in (1, 2))
    assert torch.allclose(rescaled(guided, with_prompt, 0.7), rescale_noise_cfg(guided, with_prompt, 0.7), atol=1e-5)
    plain, changed = (sample(components, [replace(SMALL, guidance_rescale=share)])[0] for share in (0.0, 0.7))
    assert plain.tobytes() != changed.tobytes()
