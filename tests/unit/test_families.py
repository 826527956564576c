"""Each family trains, exports and samples; SDXL does what diffusers' own pipeline does."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.tiny_model import TEXT_WIDTH, TEXT_WIDTH_2, make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.config.model import BaseChoice
from trainer.errors import ConfigError
from trainer.events import read_events
from trainer.lora_files.file import read_lora
from trainer.models.components import Components, load_components
from trainer.models.text import PromptOptions
from trainer.paths import DataFolder
from trainer.sampling.sampler import SampleRequest, sample
from trainer.sampling.samplers import SAMPLERS, build_scheduler, noise_levels, set_steps

CPU = torch.device("cpu")
V_ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-xl", family="sdxl")
    return load_components(str(folder), DataFolder(folder.parent), CPU, torch.float32)


@pytest.mark.parametrize(
    ("family", "scheduler", "expected"),
    [
        ("sd2", {}, {"ss_base_model_version": "sd_v2", "ss_v2": "True", "modelspec.prediction_type": "epsilon"}),
        (
            "sd2",
            {"prediction_type": "v_prediction"},
            {"ss_base_model_version": "sd_v2_v", "modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
        ),
        (
            "sdxl",
            V_ZERO,
            {
                "ss_base_model_version": "sdxl_base_v1-0",
                "ss_v2": "False",
                "ss_zero_terminal_snr": "True",
                "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
                "modelspec.prediction_type": "v",
            },
        ),
    ],
)
def test_a_family_trains_and_exports_under_its_own_names(
    tmp_path: Path, family: str, scheduler: dict[str, Any], expected: dict[str, str]
) -> None:
    model = make_tiny_model(tmp_path / "models" / "tiny", family=family, scheduler=scheduler)
    text = {"adapter": {"text_encoder": {"rank": 2, "alpha": 2.0}}, "data": {"caption_dropout": 0.5}}
    run = new_run(DataFolder(tmp_path), tiny_settings(model, make_pictures(tmp_path / "pictures", 3), text))
    result = train_here(run)
    events = read_events(run.events_path)
    losses = [event.loss for event in events if event.type == "step"]
    assert len(losses) == 6
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert not [event for event in events if event.type == "warning" and "sample" in event.message]
    with safe_open(result["lora"], framework="pt") as handle:
        metadata, keys = handle.metadata(), set(handle.keys())
    assert expected.items() <= metadata.items()
    prefixes = {"lora_unet", "lora_te1", "lora_te2"} if family == "sdxl" else {"lora_unet", "lora_te"}
    assert {"_".join(key.split("_")[:2]) for key in keys} == prefixes
    assert any("input_blocks" in key for key in keys) == (family == "sdxl")
    lora = read_lora(Path(result["lora"]))
    moved = [name for name, module in lora.modules.items() if module.up.abs().max() > 0]
    for prefix in prefixes:
        assert any(name.startswith(f"{prefix}_") for name in moved), f"nothing was learned in {prefix}"


def test_sdxl_prompts_are_encoded_as_diffusers_does(sdxl: Components) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl.path, local_files_only=True)
    prompts = ["a red house", "", "a blue tree and a robot"]
    states, _, pooled, _ = pipeline.encode_prompt(prompts, device=CPU, do_classifier_free_guidance=False)
    with torch.no_grad():
        found = sdxl.family.encode_prompts(sdxl, prompts)
        same = sdxl.family.encode_prompts(sdxl, prompts, PromptOptions(clip_skip=2))
    torch.testing.assert_close(found.states, states)
    torch.testing.assert_close(found.pooled, pooled)
    assert found.states.shape == (3, 77, TEXT_WIDTH + TEXT_WIDTH_2)
    assert torch.equal(found.states, same.states), "clip skip 2 is what SDXL does anyway"


def test_sdxl_pictures_are_those_of_diffusers(sdxl: Components) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    request = SampleRequest("a red house", "", 64, 96, 3, "DDIM", 5.0, seed=4)
    found = np.asarray(sample(sdxl, [request])[0], dtype=np.float32) / 255
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl.path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler("DDIM", sdxl.scheduler_config)
    noise = torch.randn((1, 4, 24, 16), generator=torch.Generator().manual_seed(4))
    expected = pipeline(
        "a red house", height=96, width=64, num_inference_steps=3, guidance_scale=5.0, latents=noise, output_type="np"
    ).images[0]
    np.testing.assert_allclose(found, expected, atol=1 / 255)


def test_the_framing_reaches_the_prediction(sdxl: Components) -> None:
    with torch.no_grad():
        text = sdxl.family.encode_prompts(sdxl, ["a red house"])
        noisy, times = torch.randn(1, 4, 16, 16), torch.tensor([500])
        frames = [torch.tensor([[64.0, 64, top, 0, 64, 64]]) for top in (0, 0, 32)]
        first, again, other = (sdxl.family.predict(sdxl, noisy, times, text.framed(frame)) for frame in frames)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-5)


def test_settings_overrule_what_the_model_says_of_itself(tmp_path: Path) -> None:
    folder = str(make_tiny_model(tmp_path / "models" / "tiny"))
    data = DataFolder(tmp_path)
    plain = load_components(folder, data, CPU, torch.float32)
    assert (plain.prediction_type, plain.zero_terminal_snr) == ("epsilon", False)
    choice = BaseChoice(base=folder, prediction_type="v_prediction", zero_terminal_snr="yes")
    changed = load_components(choice, data, CPU, torch.float32)
    assert (changed.prediction_type, changed.zero_terminal_snr) == ("v_prediction", True)
    scheduler = build_scheduler("Euler", changed.scheduler_config)
    scheduler.set_timesteps(5)
    assert int(scheduler.timesteps[0]) == 999
    with pytest.raises(ConfigError, match="epsilon"):
        load_components(BaseChoice(base=folder, zero_terminal_snr="yes"), data, CPU, torch.float32)


_FROM_NOISE = ("DDIM", "Euler", "DPM++ 2M", "DPM++ 3M", "UniPC", "LCM", "TCD")


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith(_FROM_NOISE)])
def test_samplers_start_from_pure_noise_without_nan(tmp_path: Path, name: Any) -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **V_ZERO}
    scheduler = build_scheduler(name, config)
    set_steps(scheduler, 4, CPU)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 8, 8, generator=generator)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    latents = noise * scheduler.init_noise_sigma
    options = {"generator": torch.Generator().manual_seed(0)} if SAMPLERS[name].draws_noise else {}
    for step, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(latents, timestep)
        signal, level = noise_levels(scheduler, step, timestep)
        # What a perfect model says: it knows the clean latents, and the noise follows from what it sees.
        noise_in_it = (seen - signal * clean) / level
        velocity = signal * noise_in_it - level * clean
        latents = scheduler.step(velocity, timestep, latents, **options).prev_sample
    torch.testing.assert_close(latents, clean, atol=0.15, rtol=0)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith(_FROM_NOISE)])
def test_samplers_that_cannot_start_from_pure_noise_say_so(name: Any) -> None:
    with pytest.raises(ConfigError, match=rf"'{re.escape(name)}' cannot(.|\n)*Choose one of: DDIM, Euler"):
        build_scheduler(name, V_ZERO)


def test_a_checkpoint_without_the_newer_settings_goes_on(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "models" / "tiny")
    run = new_run(DataFolder(tmp_path), tiny_settings(model, make_pictures(tmp_path / "pictures", 2)))
    train_here(run)
    from trainer.training.identity import require_same

    state = next(run.checkpoints.glob("step-*/state.json"))
    identity = json.loads(state.read_text())["identity"]
    older = {**identity, "settings": {k: v for k, v in identity["settings"].items() if "prediction_type" not in k}}
    del older["noise"]
    assert require_same(older, identity) == []
