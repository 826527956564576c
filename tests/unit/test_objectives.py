"""The objective against formulas written out independently, and libraries'."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from trainer.objectives.diffusion import (
    add_noise,
    draw_timesteps,
    evenly_spread_timesteps,
    offset_noise,
    sample_latents,
    target,
)
from trainer.objectives.weighting import min_snr_weights, signal_to_noise, squared_error


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def plain_alphas() -> list[float]:
    """SD 1.x's products of 1 - beta, in plain Python."""
    product, alphas = 1.0, []
    for index in range(1000):
        low, high = math.sqrt(0.00085), math.sqrt(0.012)
        product *= 1 - (low + (high - low) * index / 999) ** 2
        alphas.append(product)
    return alphas


def test_alphas_are_those_of_stable_diffusion(scheduler: DDPMScheduler) -> None:
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.tensor(plain_alphas()), rtol=1e-4, atol=1e-6)


def test_add_noise_and_velocity_equal_diffusers(scheduler: DDPMScheduler) -> None:
    latents, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    timesteps = torch.tensor([0, 1, 500, 999])
    alphas = scheduler.alphas_cumprod
    torch.testing.assert_close(
        add_noise(latents, noise, timesteps, alphas), scheduler.add_noise(latents, noise, timesteps)
    )
    torch.testing.assert_close(
        target("v_prediction", latents, noise, timesteps, alphas), scheduler.get_velocity(latents, noise, timesteps)
    )
    assert target("epsilon", latents, noise, timesteps, alphas) is noise


def test_velocity_and_noisy_latents_give_the_clean_ones_back() -> None:
    alphas = torch.tensor(plain_alphas())
    latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    timesteps = torch.tensor([10, 900])
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = add_noise(latents, noise, timesteps, alphas)
    velocity = target("v_prediction", latents, noise, timesteps, alphas)
    torch.testing.assert_close(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 5.0, 20.0])
def test_min_snr_weights_are_the_papers(gamma: float) -> None:
    alphas = plain_alphas()
    timesteps = [0, 50, 200, 500, 800, 999]
    snr = [alphas[t] / (1 - alphas[t]) for t in timesteps]
    found = signal_to_noise(torch.tensor(alphas), torch.tensor(timesteps))
    torch.testing.assert_close(found, torch.tensor(snr), rtol=1e-3, atol=1e-6)
    epsilon = [min(value, gamma) / value for value in snr]
    velocity = [min(value, gamma) / (value + 1) for value in snr]
    torch.testing.assert_close(min_snr_weights(found, gamma, "epsilon"), torch.tensor(epsilon), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        min_snr_weights(found, gamma, "v_prediction"), torch.tensor(velocity), rtol=1e-3, atol=1e-6
    )


def test_min_snr_at_zero_terminal_snr_is_finite() -> None:
    snr = torch.tensor([0.0])
    assert min_snr_weights(snr, 5.0, "epsilon").item() == 1.0
    assert min_snr_weights(snr, 5.0, "v_prediction").item() == 0.0


def test_min_snr_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="above 0"):
        min_snr_weights(torch.ones(1), 0.0, "epsilon")
    with pytest.raises(ValueError, match="unknown"):
        min_snr_weights(torch.ones(1), 5.0, "sample")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown"):
        target("sample", *(torch.ones(1),) * 4)  # type: ignore[arg-type]


def test_offset_noise_moves_the_mean_of_each_channel() -> None:
    noise, offsets = torch.randn(3, 4, 16, 16), torch.randn(3, 4, 1, 1)
    moved = offset_noise(noise, offsets, 0.1) - noise
    torch.testing.assert_close(moved, (0.1 * offsets).expand_as(noise), rtol=1e-4, atol=1e-5)
    assert torch.equal(offset_noise(noise, offsets, 0.0), noise)


def test_latents_are_drawn_around_the_mean() -> None:
    mean, std = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 0.5)
    assert torch.equal(sample_latents(mean, std, torch.ones(1, 4, 2, 2)), torch.full((1, 4, 2, 2), 3.5))


def test_timesteps_stay_in_range_and_reach_both_ends() -> None:
    drawn = draw_timesteps(20_000, 100, 110, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(100, 110))
    assert evenly_spread_timesteps(0, 1000, 4) == [125, 375, 625, 875]
    assert evenly_spread_timesteps(7, 9, 50) == [7, 8]


def test_squared_error_is_a_mean_per_sample() -> None:
    prediction = torch.zeros(2, 3, dtype=torch.bfloat16)
    found = squared_error(prediction, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([14 / 3, 3.0]))
    assert found.dtype == torch.float32
