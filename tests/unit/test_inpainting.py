"""Inpainting models of nine channels: recognised as what they are, painting as diffusers does, not trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.services.training import TrainingService
from tests.ldm_layout import tiny_checkpoint
from tests.tiny_model import make_tiny_model
from tests.unit.test_painting import noisy_picture, square_mask
from tests.unit.test_samplers import SMALL
from trainer.base_models import describe_base
from trainer.config.generate import GenerateConfig
from trainer.config.run import RunConfig
from trainer.errors import ModelFileError
from trainer.models import single_file
from trainer.models.components import Components, load_components
from trainer.models.probe import probe_prediction_type
from trainer.paths import DataFolder
from trainer.sampling.larger import Enlargement, sample_larger
from trainer.sampling.painting import Painting, wholly_masked
from trainer.sampling.request import SampleRequest
from trainer.sampling.sampler import decode, sample, sample_latents
from trainer.sampling.samplers import build_scheduler
from trainer.sampling.stack import LoraStack, StackEntry
from trainer.training.estimate import estimate

CPU = torch.device("cpu")
SIZE, BOX = (32, 32), (8, 12, 24, 28)
REQUEST = replace(SMALL, sampler="DDIM", num_inference_steps=5)
SETTINGS = {"init_image": "a", "mask": "b", "mask_blur": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "fill", in_channels=9)


@pytest.fixture(scope="module")
def components(folder: Path) -> Components:
    return load_components(str(folder), DataFolder(folder.parent), CPU, torch.float32)


def painting(**settings: object) -> Painting:
    config = GenerateConfig.model_validate({**SETTINGS, **settings})
    return Painting.of(config, noisy_picture(*SIZE), square_mask(SIZE, BOX), SIZE)


def by_diffusers(components: Components, request: SampleRequest, strength: float) -> Tensor:
    pipeline = StableDiffusionInpaintPipeline(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=components.unet,
        scheduler=build_scheduler(request.sampler, components.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=noisy_picture(*SIZE),
        mask_image=square_mask(SIZE, BOX),
        width=request.width,
        height=request.height,
        strength=strength,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    )
    return made.images[0]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_it_paints_as_diffusers_does(
    components: Components, monkeypatch: pytest.MonkeyPatch, sampler: str, strength: float
) -> None:
    # Ours encodes a picture the same way each time; diffusers draws, from the generator of the noise.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    request = replace(REQUEST, sampler=sampler)
    start = painting().start(components, strength)
    ours = sample_latents(components, [replace(request, start=start)])[0]
    theirs = by_diffusers(components, request, strength)
    assert float(theirs.abs().max()) > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("area", ["whole picture", "only masked"])
def test_outside_of_the_mask_every_pixel_stays(components: Components, area: str) -> None:
    work = painting(masked_area=area, mask_padding=2, mask_blur=1)
    start = work.start(components, 0.9)
    assert start.repainted is None, "the model sees itself what it has to fit to"
    made = work.finish(sample(components, [replace(REQUEST, start=start)])[0])
    changed = (np.asarray(made) != np.asarray(work.picture)).any(2)
    assert changed[14:26, 10:22].mean() > 0.9
    outside = np.ones_like(changed)
    outside[BOX[1] - 4 : BOX[3] + 4, BOX[0] - 4 : BOX[2] + 4] = False
    assert not changed[outside].any()


def test_what_is_shown_decides_and_is_each_pictures_own(components: Components) -> None:
    start = painting().start(components, 1.0)
    assert start.shown is not None
    assert start.shown[0].sum() == 16, "a box of 16 pixels is one of 4 latents"
    asked = [replace(REQUEST, start=start), replace(REQUEST, start=replace(start, shown=None), seed=8)]
    masked, unmasked = sample_latents(components, asked)
    for request, made in zip(asked, (masked, unmasked), strict=True):
        torch.testing.assert_close(sample_latents(components, [request])[0], made, atol=1e-5, rtol=1e-4)
    same_seed = sample_latents(components, [replace(asked[1], seed=asked[0].seed)])[0]
    assert float((same_seed - masked).abs().max()) > 1e-2


def test_without_a_mask_all_is_made_anew_in_both_passes(components: Components) -> None:
    shown = wholly_masked(components, *SIZE)
    assert shown[0].min() == 1
    assert components.vae_scale_factor == 4
    grey = components.family.encode_images(components, torch.zeros(1, 3, *SIZE))[0][0]
    torch.testing.assert_close(shown[1:], grey)
    made = sample_larger(components, [REQUEST], Enlargement(2, "latent", 0.5))[0]
    assert decode(components, [made])[0].size == (64, 64)


def lora(path: Path) -> Path:
    """A LoRA of one attention layer of the tiny model and of its first convolution, as an ordinary model has it."""
    torch.manual_seed(0)
    tensors = {}
    for name, (out, inputs), kernel in (
        ("lora_unet_down_blocks_0_attentions_0_proj_in", (16, 16), (1, 1)),
        *((f"lora_unet_down_blocks_0_resnets_0_{conv}", (16, 16), (3, 3)) for conv in ("conv1", "conv2")),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", (16, 16), (1, 1)),
        ("lora_unet_conv_in", (16, 4), (3, 3)),
    ):
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, inputs, *kernel)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 2, 1, 1)
    save_file(tensors, path)
    return path


def test_loras_of_the_model_it_was_made_from_work_but_for_the_first_layer(
    components: Components, tmp_path: Path
) -> None:
    stack = LoraStack(components)
    before = sample_latents(components, [REQUEST])[0]
    file = lora(tmp_path / "mine.safetensors")
    stack.set([StackEntry(file)])
    assert stack.unknown == {"mine": ("lora_unet_conv_in",)}
    assert len(stack.touched) == 4
    assert float((sample_latents(components, [REQUEST])[0] - before).abs().max()) > 1e-2
    stack.clear()
    assert torch.equal(sample_latents(components, [REQUEST])[0], before)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_recognised_and_loads_to_the_weights_of_the_folder(
    folder: Path, components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    ordinary = make_tiny_model(tmp_path / "ordinary")
    monkeypatch.setattr(single_file, "CONFIGS", tmp_path / "configs")
    shutil.copytree(ordinary, tmp_path / "configs" / "sd1")
    monkeypatch.setattr(single_file, "bundled_tokenizer", lambda settings: components.tokenizer)
    path = tiny_checkpoint(folder, tmp_path / "fill.safetensors", "sd1")
    if suffix == ".ckpt":
        torch.save({"state_dict": load_file(path)}, path.with_suffix(suffix))
        path = path.with_suffix(suffix)
    assert describe_base(path).label == "fill (inpainting)"
    found = load_components(str(path), DataFolder(tmp_path), CPU, torch.float32)
    assert found.is_inpainting
    assert torch.equal(found.unet.conv_in.weight, components.unet.conv_in.weight)
    plain = tiny_checkpoint(ordinary, tmp_path / "plain.safetensors", "sd1")
    torch.save(load_file(plain), tmp_path / "plain.ckpt")
    for name in ("plain.safetensors", "plain.ckpt"):
        assert not describe_base(tmp_path / name).traits.is_inpainting


def test_it_is_refused_for_training(folder: Path, tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": {"base": str(folder)}, "data": {"dataset": "any"}})
    data = DataFolder(tmp_path)
    with pytest.raises(ModelFileError, match="cannot be trained here"):
        estimate(config, data)
    data.models.mkdir()
    shutil.copytree(folder, data.models / "fill")
    for base in (str(folder), "fill"):
        settings = {"model": {"base": base}, "data": {"dataset": "any"}}
        findings = [str(finding) for finding in TrainingService(data).check(settings)[1]]
        assert any("model.base" in text and "cannot be trained here" in text for text in findings)


def test_what_it_predicts_can_be_asked(components: Components) -> None:
    assert probe_prediction_type(components) in ("epsilon", "v_prediction")
