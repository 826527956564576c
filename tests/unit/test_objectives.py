"""The objective against formulas written out independently, and libraries'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from trainer.config.objective import ObjectiveConfig
from trainer.objectives.diffusion import (
    add_noise,
    draw_timesteps,
    evenly_spread_timesteps,
    offset_noise,
    perturbed_noise,
    pyramid_noise,
    sample_latents,
    target,
)
from trainer.objectives.losses import error, huber_threshold, pseudo_huber, squared_error
from trainer.objectives.weighting import debiased_weights, loss_weights, min_snr_weights, p2_weights, signal_to_noise
from trainer.timesteps import density


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
    objective = ObjectiveConfig(min_timestep=100, max_timestep=110)
    drawn = draw_timesteps(20_000, objective, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(100, 110))
    # What runs before there was a choice of distribution drew.
    former = torch.randint(100, 110, (20_000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, former)
    assert evenly_spread_timesteps(0, 1000, 4) == [125, 375, 625, 875]
    assert evenly_spread_timesteps(7, 9, 50) == [7, 8]


def test_squared_error_is_a_mean_per_sample() -> None:
    prediction = torch.zeros(2, 3, dtype=torch.bfloat16)
    found = squared_error(prediction, torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]]))
    torch.testing.assert_close(found, torch.tensor([14 / 3, 3.0]))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("weigh", [debiased_weights, lambda snr, kind: p2_weights(snr, 0.5, 2.0, kind)])
def test_weights_ask_the_same_of_a_predicted_noise_and_a_predicted_velocity(weigh: Any) -> None:
    """The same error of the clean picture, told as an error of the noise and of v, weighs the same."""
    alphas = torch.tensor(plain_alphas())
    timesteps = torch.tensor([1, 100, 500, 900])
    latents, noise, slip = torch.randn(3, 4, 4, 8, 8).unbind()
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = add_noise(latents, noise, timesteps, alphas)
    wrong_noise = noise + 0.1 * slip
    wrong_latents = (noisy - (1 - alpha).sqrt() * wrong_noise) / alpha.sqrt()
    velocity = target("v_prediction", latents, noise, timesteps, alphas)
    wrong_velocity = target("v_prediction", wrong_latents, wrong_noise, timesteps, alphas)
    snr = signal_to_noise(alphas, timesteps)
    on_noise = weigh(snr, "epsilon") * squared_error(wrong_noise, noise)
    on_velocity = weigh(snr, "v_prediction") * squared_error(wrong_velocity, velocity)
    torch.testing.assert_close(on_noise, on_velocity, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="unknown"):
        weigh(snr, "sample")


def test_debiased_and_p2_weights_are_the_papers() -> None:
    alphas = plain_alphas()
    snr = [alphas[t] / (1 - alphas[t]) for t in (0, 50, 500, 999)]
    found = torch.tensor(snr)
    debiased = torch.tensor([1 / math.sqrt(value) for value in snr])
    torch.testing.assert_close(debiased_weights(found, "epsilon"), debiased, rtol=1e-4, atol=0)
    p2 = torch.tensor([1 / (1 + value) for value in snr])
    torch.testing.assert_close(p2_weights(found, 1.0, 1.0, "epsilon"), p2, rtol=1e-4, atol=0)
    terminal = torch.tensor([0.0])
    assert (
        debiased_weights(terminal, "v_prediction").item() == p2_weights(terminal, 1.0, 1.0, "v_prediction").item() == 0
    )
    assert math.isfinite(debiased_weights(terminal, "epsilon").item())


def test_the_settings_choose_the_weights() -> None:
    snr = torch.tensor([0.01, 2.0, 300.0])

    def chosen(**settings: Any) -> list[float]:
        return loss_weights(ObjectiveConfig(**settings), snr, "epsilon").tolist()

    ones = [1.0, 1.0, 1.0]
    assert chosen(weighting="constant") == chosen(weighting="min_snr", min_snr_gamma=0) == ones
    assert chosen() == pytest.approx([1.0, 1.0, 5 / 300])
    assert chosen(weighting="debiased") == pytest.approx([10.0, 2**-0.5, 300**-0.5])
    assert chosen(weighting="p2", p2_gamma=2, p2_k=3) == pytest.approx([1 / 3.01**2, 1 / 25, 1 / 303**2])


def test_huber_losses_are_kohyas() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, goal = torch.randn(2, 3, 4, 8, 8, generator=generator).unbind()
    delta = torch.tensor([0.05, 0.5, 3.0])
    for is_scaled in (False, True):
        expected = []
        for index, c in enumerate(delta.tolist()):
            gaps = (prediction[index] - goal[index]).double().flatten().tolist()
            factor = 2 * c if is_scaled else 2
            expected.append(sum(factor * (math.sqrt(gap**2 + c**2) - c) for gap in gaps) / len(gaps))
        found = pseudo_huber(prediction, goal, delta, is_scaled=is_scaled)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_huber_is_the_square_of_small_and_proportional_to_large_errors() -> None:
    delta = torch.tensor([0.1])
    small, large = torch.full((1, 4), 1e-3), torch.full((1, 4), 50.0)
    zero = torch.zeros(1, 4)
    torch.testing.assert_close(
        pseudo_huber(small, zero, delta, is_scaled=True), squared_error(small, zero), rtol=1e-3, atol=0
    )
    assert pseudo_huber(large, zero, delta, is_scaled=True).item() == pytest.approx(2 * 0.1 * 50, rel=1e-2)
    assert pseudo_huber(large, zero, delta, is_scaled=False).item() == pytest.approx(2 * 50, rel=1e-2)


def test_huber_thresholds_are_kohyas() -> None:
    alphas = plain_alphas()
    timesteps = torch.tensor([0, 10, 500, 999])

    def threshold(schedule: Any) -> list[float]:
        return huber_threshold(schedule, 0.1, timesteps, torch.tensor(alphas)).tolist()

    assert threshold("constant") == pytest.approx([0.1] * 4)
    assert threshold("exponential") == pytest.approx([math.exp(math.log(0.1) / 1000 * t) for t in timesteps.tolist()])
    sigmas = [math.sqrt((1 - alphas[t]) / alphas[t]) for t in timesteps.tolist()]
    assert threshold("snr") == pytest.approx([0.9 / (1 + sigma) ** 2 + 0.1 for sigma in sigmas], rel=1e-3)
    assert huber_threshold("snr", 0.1, torch.tensor([0]), torch.tensor([0.0])).item() == pytest.approx(0.1)


def test_the_settings_choose_the_loss() -> None:
    alphas, timesteps = torch.tensor(plain_alphas()), torch.tensor([0, 999])
    prediction, goal = torch.randn(2, 2, 4, 8, 8).unbind()
    plain = error(ObjectiveConfig(), prediction, goal, timesteps, alphas)
    assert torch.equal(plain, squared_error(prediction, goal))
    config = ObjectiveConfig(loss="smooth_l1", huber_schedule="constant", huber_delta=0.3)
    expected = pseudo_huber(prediction, goal, torch.tensor([0.3, 0.3]), is_scaled=False)
    assert torch.equal(error(config, prediction, goal, timesteps, alphas), expected)
    assert not torch.equal(error(ObjectiveConfig(loss="huber"), prediction, goal, timesteps, alphas), plain)


def test_pyramid_noise_moves_power_to_large_areas_and_keeps_the_deviation() -> None:
    noise = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    found = pyramid_noise(noise, 6, 0.4, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.flatten(1).std(dim=1), torch.ones(16), rtol=1e-4, atol=0)
    means, plain = found.mean(dim=(2, 3)).std(), noise.mean(dim=(2, 3)).std()
    assert plain < 0.05
    assert means > 2 * plain
    assert pyramid_noise(noise, 0, 0.4, torch.Generator()) is noise
    assert torch.equal(found, pyramid_noise(noise, 6, 0.4, torch.Generator().manual_seed(1)))
    # A side of one pixel ends the pyramid instead of dividing by nothing.
    assert pyramid_noise(noise[..., :1], 10, 1.0, torch.Generator()).shape == (16, 4, 32, 1)


def test_perturbed_noise_has_the_papers_deviation() -> None:
    noise, extra = torch.randn(2, 8, 4, 32, 32, generator=torch.Generator().manual_seed(0)).unbind()
    found = perturbed_noise(noise, extra, 0.5)
    assert found.var().item() == pytest.approx(1 + 0.5**2, rel=0.05)
    torch.testing.assert_close(found - noise, 0.5 * extra)


def normal_share(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"timestep_distribution": "logit_normal", "timestep_mean": -1.0, "timestep_std": 0.7},
        {"timestep_distribution": "mode", "timestep_mode_scale": 1.29},
        {"timestep_distribution": "mode", "timestep_mode_scale": -0.9, "min_timestep": 200, "max_timestep": 700},
    ],
)
def test_the_preview_of_the_timesteps_is_what_is_drawn(settings: dict[str, Any]) -> None:
    objective = ObjectiveConfig(**settings)
    drawn = draw_timesteps(40_000, objective, torch.Generator().manual_seed(0))
    assert objective.min_timestep <= int(drawn.min())
    assert int(drawn.max()) < objective.max_timestep
    counted = torch.bincount(drawn // 50, minlength=20) / len(drawn)
    found = density(objective, 20)
    assert sum(found) == pytest.approx(1)
    torch.testing.assert_close(counted, torch.tensor(found), rtol=0, atol=0.006)


def test_logit_normal_timesteps_have_the_closed_form() -> None:
    objective = ObjectiveConfig(timestep_distribution="logit_normal", timestep_mean=0.5, timestep_std=1.5)

    def below(place: float) -> float:
        if place in (0, 1):
            return place
        return normal_share((math.log(place / (1 - place)) - 0.5) / 1.5)

    expected = [below((index + 1) / 10) - below(index / 10) for index in range(10)]
    assert density(objective, 10) == pytest.approx(expected, abs=1e-3)


def test_mode_timesteps_have_the_papers_density() -> None:
    """The density at f(u) is 1 / |f'(u)|, from equation 20's derivative."""
    scale = 1.0
    objective = ObjectiveConfig(timestep_distribution="mode", timestep_mode_scale=scale)
    found = density(objective, 1000)
    for u in (0.1, 0.3, 0.5, 0.8):
        place = 1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)
        slope = -1 - scale * (-math.pi / 2 * math.sin(math.pi * u) + 1)
        around = found[int(place * 1000) - 10 : int(place * 1000) + 10]
        assert sum(around) / 20 == pytest.approx(1 / 1000 / abs(slope), rel=0.05)
