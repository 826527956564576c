"""A loaded model does what diffusers' own pipeline does; devices and number formats are chosen with reasons."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import make_tiny_model
from trainer.config.run import RunConfig
from trainer.errors import ConfigError, ModelFileError, ResourceError
from trainer.models.components import Components, load_components
from trainer.models.devices import dtype_name, has_fast_bf16, pick_device, pick_dtype
from trainer.models.family import FAMILIES, load_family
from trainer.models.text import PromptOptions
from trainer.objects import load_object
from trainer.paths import DataFolder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def components(folder: Path) -> Components:
    return load_components(str(folder), DataFolder(folder.parent), CPU, torch.float32)


def test_prompts_are_encoded_as_diffusers_does(components: Components, folder: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    prompts = ["a red house", "", "水墨"]
    expected, _ = pipeline.encode_prompt(prompts, CPU, 1, do_classifier_free_guidance=False)
    with torch.no_grad():
        found = components.family.encode_prompts(components, prompts).states
    torch.testing.assert_close(found, expected)
    assert found.shape == (3, 77, 32)


def test_clip_skip_is_the_encoder_without_its_last_layer(components: Components) -> None:
    # diffusers' own clip_skip fails with transformers 5, so the shortened encoder is the judge.
    shortened = copy.deepcopy(components.text_encoder)
    shortened.encoder.layers = shortened.encoder.layers[:-1]
    ids = components.tokenizer(["a red house"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shortened(ids).last_hidden_state
        found = components.family.encode_prompts(components, ["a red house"], PromptOptions(clip_skip=2)).states
        plain = components.family.encode_prompts(components, ["a red house"]).states
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("vae_blocks", [3, 4])
def test_latents_have_the_models_own_factor_and_scale(tmp_path: Path, vae_blocks: int) -> None:
    folder = make_tiny_model(tmp_path / "model", vae_blocks=vae_blocks)
    components = load_components(str(folder), DataFolder(tmp_path), CPU, torch.float32)
    factor = 2 ** (vae_blocks - 1)
    assert components.vae_scale_factor == factor
    assert components.resolution == 16 * factor
    assert components.family.pixel_multiple(components) == 2 * factor
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    mean, std = components.family.encode_images(components, pixels)
    with torch.no_grad():
        distribution = components.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, distribution.mean * 0.5)
    torch.testing.assert_close(std, distribution.std * 0.5)
    assert mean.shape == (2, 4, 64 // factor, 96 // factor)
    decoded = components.family.decode_latents(components, mean)
    assert decoded.shape == pixels.shape
    with torch.no_grad():
        expected = (components.vae.decode(distribution.mean).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, expected)


def test_everything_is_frozen_and_in_the_asked_format(folder: Path) -> None:
    loaded = load_components(str(folder), DataFolder(folder.parent), CPU, torch.bfloat16)
    for model in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for weight in model.parameters())
        assert not model.training


def test_the_vae_stays_in_fp32_where_the_rest_is_fp16(folder: Path) -> None:
    loaded = load_components(str(folder), DataFolder(folder.parent), CPU, torch.float16)
    assert loaded.vae.dtype == torch.float32
    assert loaded.unet.dtype == torch.float16


def test_weights_that_lack_in_the_text_encoder_are_not_made_up(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights[next(name for name in weights if "q_proj.weight" in name)]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelFileError, match="q_proj"):
        load_components(str(folder), DataFolder(tmp_path), CPU, torch.float32)


def test_weights_of_another_shape_are_a_model_error(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(3, 3, 3, 3)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        load_components(str(folder), DataFolder(tmp_path), CPU, torch.float32)


def test_resident_parts_go_back_where_they_were(components: Components) -> None:
    components.move_away("vae")
    with components.resident("vae", "text_encoder"):
        assert components.vae.device == components.device
    assert components.vae.device.type == "cpu"


def test_devices_and_formats() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cuda", "xpu", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="cuda"):
            pick_device("cuda")
    assert pick_dtype("fp32", CPU) == torch.float32
    assert pick_dtype("bf16", CPU) == torch.bfloat16
    with pytest.raises(ConfigError, match="NaN"):
        pick_dtype("fp16", CPU)
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if has_fast_bf16(CPU) else torch.float32)
    assert [dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)] == ["fp32", "bf16", "fp16"]


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_a_processor_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert pick_dtype("auto", CPU) == expected


def test_every_implementation_that_a_name_stands_for_exists() -> None:
    config = RunConfig()
    assert load_object(config.adapter.implementation)
    assert load_object(config.optimizer.implementation)
    for name in FAMILIES:
        assert load_family(name).name == name
    with pytest.raises(ValueError, match="module:name"):
        load_object("no colon")
