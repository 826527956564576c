"""The denoising loop and its samplers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny_model import make_tiny_model
from trainer.config.generate import SamplerName
from trainer.errors import Cancelled, ConfigError, InkwashError
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling.lms import ExactLMSDiscreteScheduler
from trainer.sampling.preview import LatentPreview
from trainer.sampling.sampler import SampleRequest, sample
from trainer.sampling.samplers import SAMPLERS, build_scheduler

REQUEST = SampleRequest("a red house", "ink", 64, 64, 4, "DPM++ 2M Karras", 5.0, 7)
SMALL = replace(REQUEST, width=32, height=32)


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def assert_same(left: Image.Image, right: Image.Image) -> None:
    # Another batch size sums in another order: one level of 255 at most.
    assert np.abs(pixels(left) - pixels(right)).max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_makes_a_picture_of_its_seed_in_a_single_step(components: Components, name: SamplerName) -> None:
    state = torch.random.get_rng_state()
    requests = [replace(SMALL, sampler=name, num_inference_steps=1, seed=seed) for seed in (7, 8)]
    first, other = sample(components, requests)
    assert first.size == (32, 32)
    assert first.tobytes() != other.tobytes()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(components: Components, name: SamplerName) -> None:
    requests = [
        replace(SMALL, sampler=name, seed=seed, guidance_scale=3.0 + seed, num_inference_steps=3) for seed in range(2)
    ]
    requests.insert(1, replace(requests[0], width=24, height=48))
    together = sample(components, requests)
    assert [image.size for image in together] == [(32, 32), (24, 48), (32, 32)]
    for request, image in zip(requests, together, strict=True):
        assert_same(sample(components, [request])[0], image)


def test_samplers_differ_from_each_other(components: Components) -> None:
    pictures = {
        name: sample(components, [replace(SMALL, sampler=name, num_inference_steps=5)])[0].tobytes()
        for name in SAMPLERS
    }
    assert len(set(pictures.values())) == len(SAMPLERS)


def test_prompt_negative_prompt_and_clip_skip_matter(components: Components) -> None:
    base = sample(components, [REQUEST])[0].tobytes()
    for change in ({"prompt": "blue tree"}, {"negative_prompt": "robot"}, {"clip_skip": 2}, {"guidance_scale": 9.0}):
        assert sample(components, [replace(REQUEST, **change)])[0].tobytes() != base, change


class CountingUnet(nn.Module):
    """Notes the batch sizes that the UNet is called with."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet, self.config, self.sizes = unet, unet.config, []

    def forward(self, latents: Tensor, *arguments: object, **options: object) -> object:
        self.sizes.append(len(latents))
        return self.unet(latents, *arguments, **options)


@pytest.mark.parametrize(("guidance", "factor"), [(7.0, 2), (1.0, 1), (0.0, 1)])
def test_guidance_is_one_call_and_absent_at_1_and_0(components: Components, guidance: float, factor: int) -> None:
    counting = replace(components, unet=CountingUnet(components.unet))  # type: ignore[arg-type]
    requests = [replace(REQUEST, guidance_scale=guidance, seed=seed) for seed in (1, 2)]
    images = sample(counting, requests)
    assert counting.unet.sizes == [2 * factor] * 4
    unconditional = sample(components, [replace(requests[0], negative_prompt="robot")])[0]
    assert (images[0].tobytes() == unconditional.tobytes()) == (factor == 1)


def test_ddim_is_the_formula_of_its_paper(components: Components) -> None:
    """One DDIM step by hand (arXiv 2010.02502, equation 12), without the scheduler."""
    request = replace(REQUEST, sampler="DDIM", num_inference_steps=1, guidance_scale=1.0)
    config = components.scheduler_config
    betas = torch.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(7))
    states = components.family.encode_prompts(components, [request.prompt])
    with torch.no_grad():
        # Leading spacing with an offset of 1: the only timestep of one step.
        epsilon = components.family.predict(components, noise, torch.tensor([1]), states)
    clean = (noise - (1 - alphas[1]).sqrt() * epsilon) / alphas[1].sqrt()
    latents = alphas[0].sqrt() * clean + (1 - alphas[0]).sqrt() * epsilon
    expected = components.family.decode_latents(components, latents)[0]
    found = torch.from_numpy(pixels(sample(components, [request])[0])).permute(2, 0, 1) / 255
    assert (found - expected).abs().max() < 2 / 255


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_coefficients_are_the_integral_of_the_lagrange_polynomials(order: int) -> None:
    scheduler = ExactLMSDiscreteScheduler()
    scheduler.set_timesteps(12)
    sigmas, t = scheduler.sigmas.double(), 6
    tau = torch.linspace(float(sigmas[t]), float(sigmas[t + 1]), 20_001, dtype=torch.float64)
    for current in range(order):
        values = torch.ones_like(tau)
        for k in range(order):
            if k != current:
                values *= (tau - sigmas[t - k]) / (sigmas[t - current] - sigmas[t - k])
        expected = float(torch.trapezoid(values, tau))
        assert scheduler.get_lms_coefficient(order, t, current) == pytest.approx(expected, rel=1e-5)


def test_the_schedule_and_prediction_type_are_the_models(components: Components) -> None:
    config = {**components.scheduler_config, "prediction_type": "v_prediction", "beta_start": 0.002}
    for name in SAMPLERS:
        scheduler = build_scheduler(name, config)
        assert (scheduler.config.prediction_type, scheduler.config.beta_start) == ("v_prediction", 0.002)
    with pytest.raises(ConfigError, match="no sampler"):
        build_scheduler("Nothing", {})  # type: ignore[arg-type]


def test_sizes_that_the_model_cannot_make_are_refused_with_the_multiple(components: Components) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 4; 66 is not(.|\n)*64 or 68"):
        sample(components, [replace(REQUEST, width=66)])
    assert sample(components, [replace(REQUEST, width=36, height=44)])[0].size == (36, 44)


def test_a_step_reports_and_may_cancel(components: Components) -> None:
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    requests = [replace(REQUEST, seed=1), replace(REQUEST, seed=2), replace(REQUEST, width=32)]
    sample(components, requests, on_step=lambda step, total, latents: seen.append((step, total, tuple(latents.shape))))
    assert [entry[:2] for entry in seen] == [(step, 8) for step in range(1, 9)]
    assert {entry[2] for entry in seen} == {(2, 4, 16, 16), (1, 4, 16, 8)}

    def cancel(step: int, total: int, latents: Tensor) -> None:
        seen.append((step, total, ()))
        raise Cancelled("Stopped.")

    del seen[:]
    with pytest.raises(Cancelled):
        sample(components, [REQUEST], on_step=cancel)
    assert len(seen) == 1


def test_estimates_end_at_the_finished_latents(components: Components) -> None:
    estimates: list[Tensor] = []
    request = replace(REQUEST, sampler="Euler", num_inference_steps=10)
    image = sample(components, [request], on_step=lambda _step, _total, latents: estimates.append(latents))[0]
    decoded = components.family.decode_latents(components, estimates[-1])[0]
    found = torch.from_numpy(pixels(image)).permute(2, 0, 1) / 255
    assert (decoded - found).abs().max() < 2 / 255


def test_training_flags_are_as_before(components: Components) -> None:
    components.unet.mid_block.train()
    flags = [module.training for module in components.unet.modules()]
    assert True in flags
    assert False in flags
    during: list[bool] = []
    sample(components, [REQUEST], on_step=lambda *_: during.append(any(m.training for m in components.unet.modules())))
    assert not any(during)
    assert [module.training for module in components.unet.modules()] == flags
    components.unet.eval()


def test_nan_is_an_error_and_no_black_picture(components: Components) -> None:
    weight = components.unet.conv_out.weight
    kept = weight.clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(InkwashError, match="NaN"):
            sample(components, [REQUEST])
    finally:
        weight.data.copy_(kept)


def test_the_cheap_preview_has_the_colours_of_the_decoded_picture(components: Components) -> None:
    preview = LatentPreview(components)
    half = torch.zeros(1, 3, 64, 64)
    half[..., 32:] = 1.0
    latents, _ = components.family.encode_images(components, half * 2 - 1)
    image = preview.picture(latents[0])
    assert image.size == (256, 256)
    values = pixels(image)
    assert values[:, 200:].mean() > values[:, :56].mean()
    assert preview.picture(torch.zeros(4, 8, 16)).size == (256, 128)
