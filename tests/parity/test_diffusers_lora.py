"""The same LoRA as trained (peft), as exported and loaded by diffusers, and as merged by us: one picture."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn

from tests.random_lora import ALL, ATTENTION, random_lora
from tests.tiny_model import make_tiny_model
from trainer.lora_files.file import LoraModule, write_lora
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling.sampler import SampleRequest, sample
from trainer.sampling.samplers import SAMPLERS, build_scheduler
from trainer.sampling.stack import LoraStack, StackEntry

REQUEST = SampleRequest("a zib robot", "blue", 64, 64, 5, "DPM++ 2M Karras", 4.0, 11)
TOLERANCE = 1e-4
"""Of picture values between 0 and 1, after five steps with guidance, in float32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def components(folder: Path) -> Components:
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


def our_latents(components: Components) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    sample(components, [REQUEST], on_step=lambda _step, _total, latents: kept.append(latents))
    return components.family.decode_latents(components, kept[-1])[0]


def diffusers_pixels(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """What diffusers' own loop makes of the same noise; the last step's result is the model's last estimate, too."""
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative_prompt,
        width=REQUEST.width,
        height=REQUEST.height,
        num_inference_steps=REQUEST.num_inference_steps,
        guidance_scale=REQUEST.guidance_scale,
        latents=torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(REQUEST.seed)),
        output_type="np",
    )
    return torch.from_numpy(np.ascontiguousarray(output.images[0].transpose(2, 0, 1)))


@pytest.fixture
def pipeline(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    options = SAMPLERS[REQUEST.sampler].options
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **options)
    return pipeline


def put_on_with_peft(components: Components, modules: dict[str, LoraModule]) -> None:
    """The LoRA as it is while training: peft's layers around the base's."""
    for name, model in (("unet", components.unet), ("text_encoder", components.text_encoder)):
        own = {path.removeprefix(f"{name}."): module for path, module in modules.items() if path.startswith(f"{name}.")}
        any_module = next(iter(own.values()))
        inject_adapter_in_model(
            LoraConfig(r=any_module.rank, lora_alpha=any_module.alpha, target_modules=list(own)), model
        )
        layers: dict[str, nn.Module] = dict(model.named_modules())
        for path, module in own.items():
            layers[path].lora_A["default"].weight.data.copy_(module.down)  # type: ignore[index]
            layers[path].lora_B["default"].weight.data.copy_(module.up)  # type: ignore[index]


def test_the_loop_is_that_of_diffusers(components: Components, pipeline: StableDiffusionPipeline) -> None:
    torch.testing.assert_close(our_latents(components), diffusers_pixels(pipeline), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("endings", [ATTENTION, ALL], ids=["attention", "all+conv"])
def test_trained_exported_and_merged_make_the_same_picture(
    folder: Path, components: Components, pipeline: StableDiffusionPipeline, tmp_path: Path, endings: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    modules = random_lora(components, rank=4, alpha=2.5, endings=endings, size=0.3)
    assert any(path.startswith("text_encoder.") for path in modules)
    write_lora(tmp_path / "a.safetensors", modules, {}, "fp32")
    base = our_latents(components)

    stack = LoraStack(components)
    stack.set([StackEntry(tmp_path / "a.safetensors")])
    merged = our_latents(components)
    stack.clear()
    put_on_with_peft(components, modules)
    trained = our_latents(components)

    caplog.set_level(logging.WARNING)
    diffusers_logging.enable_propagation()
    pipeline.load_lora_weights(str(tmp_path), weight_name="a.safetensors", local_files_only=True)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith(("diffusers", "peft"))]
    diffusers_logging.disable_propagation()
    assert not [text for text in warnings if "unexpected" in text.lower() or "alpha_pattern" in text]
    exported = diffusers_pixels(pipeline)

    # The LoRA must be seen, else the comparison says nothing.
    assert (base - merged).abs().max() > 0.02
    torch.testing.assert_close(merged, trained, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(exported, trained, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("weight", [-0.5, 0.3])
def test_a_weighted_stack_is_that_of_diffusers(
    components: Components, pipeline: StableDiffusionPipeline, tmp_path: Path, weight: float
) -> None:
    for index in range(2):
        modules = random_lora(components, rank=2 + index, alpha=3.0, seed=index, size=0.3)
        write_lora(tmp_path / f"{index}.safetensors", modules, {}, "fp32")
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{index}.safetensors", adapter_name=f"a{index}")
    pipeline.set_adapters(["a0", "a1"], [{"unet": weight, "text_encoder": 1.0}, {"unet": 0.8, "text_encoder": weight}])
    LoraStack(components).set(
        [StackEntry(tmp_path / "0.safetensors", weight, 1.0), StackEntry(tmp_path / "1.safetensors", 0.8, weight)]
    )
    torch.testing.assert_close(our_latents(components), diffusers_pixels(pipeline), atol=TOLERANCE, rtol=0)


def test_a_file_that_diffusers_saved_is_read_with_its_alpha(
    components: Components, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    modules = random_lora(components, rank=4, alpha=1.5, size=0.3)
    put_on_with_peft(components, modules)
    trained = our_latents(components)
    tensors = {}
    for path, module in modules.items():
        # As diffusers writes them: with the level that transformers 5 has lost.
        name = path.replace("text_encoder.", "text_encoder.text_model.")
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = module.down, module.up
    settings = '{"unet.lora_alpha": 1.5, "unet.r": 4, "text_encoder.lora_alpha": 1.5, "text_encoder.r": 4}'
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "lora_adapter_metadata": settings})

    fresh = load_components(str(components.path), DataFolder(tmp_path), torch.device("cpu"), torch.float32)
    LoraStack(fresh).set([StackEntry(tmp_path / "a.safetensors")])
    torch.testing.assert_close(our_latents(fresh), trained, atol=TOLERANCE, rtol=0)


def test_scheduler_tables_agree_with_the_bases_own_config(components: Components) -> None:
    scheduler = build_scheduler(REQUEST.sampler, components.scheduler_config)
    own = DPMSolverMultistepScheduler.from_config(components.scheduler_config, **SAMPLERS[REQUEST.sampler].options)
    scheduler.set_timesteps(7)
    own.set_timesteps(7)
    assert torch.equal(scheduler.timesteps, own.timesteps)
    assert torch.equal(scheduler.sigmas, own.sigmas)
