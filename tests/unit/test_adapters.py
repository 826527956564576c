"""LoRA on the tiny model: the start is the base, the maths is the formula, the layers are those of the named sets."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from tests.tiny_model import make_tiny_model
from trainer.adapters.lora import LoraMethod
from trainer.adapters.method import build_method
from trainer.config.adapter import AdapterConfig, TextEncoderLora, UnetLora
from trainer.config.targets import UnetTargets
from trainer.errors import RunError
from trainer.lora_files.file import LoraModule
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Components:
    return load_components(str(folder), DataFolder(folder.parent / "data"), torch.device("cpu"), dtype)


def predict(components: Components, prompt: str = "a red house") -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 16, 16, generator=generator)
    with torch.no_grad():
        states = components.family.encode_prompts(components, [prompt])
        return components.family.predict(components, latents, torch.tensor([500]), states)


BOTH = AdapterConfig(
    unet=UnetLora(rank=4, alpha=2.0, targets="all+conv"), text_encoder=TextEncoderLora(rank=3, alpha=6.0)
)


def randomised(components: Components, config: AdapterConfig = BOTH) -> LoraMethod:
    method = LoraMethod(config)
    method.attach(components, seed=0)
    generator = torch.Generator().manual_seed(2)
    for weight in method.state_dict().values():
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return method


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_exactly_the_base(folder: Path, dtype: torch.dtype) -> None:
    components = load(folder, dtype)
    before = predict(components)
    build_method(BOTH).attach(components, seed=0)
    assert torch.equal(predict(components), before)


def test_the_model_with_adapter_is_the_model_with_changed_weights(folder: Path) -> None:
    adapted, merged = load(folder), load(folder)
    method = randomised(adapted)
    for path, module in method.export_modules().items():
        part, _, layer_path = path.partition(".")
        layer = getattr(merged, part).get_submodule(layer_path)
        rank = 4 if part == "unet" else 3
        scale = 2.0 / 4 if part == "unet" else 6.0 / 3
        assert isinstance(module, LoraModule)
        assert module.rank == rank
        delta = scale * torch.einsum("or,r...->o...", module.up.flatten(1), module.down)
        layer.weight.data += delta.reshape(layer.weight.shape)
    assert not torch.allclose(predict(adapted), predict(load(folder)), atol=1e-3)
    torch.testing.assert_close(predict(adapted), predict(merged), rtol=1e-4, atol=1e-4)


def test_weights_are_fp32_and_the_base_is_frozen(folder: Path) -> None:
    components = load(folder, torch.bfloat16)
    method = LoraMethod(BOTH)
    method.attach(components, seed=0)
    trained = [weight for weights in method.parameter_groups().values() for weight in weights]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert all(weight.requires_grad for weight in trained)
    ids = {id(weight) for weight in trained}
    for model in (components.unet, components.text_encoder, components.vae):
        for name, weight in model.named_parameters():
            assert weight.requires_grad == (id(weight) in ids), name


def test_gradients_reach_every_layer_of_both_parts(folder: Path) -> None:
    components = load(folder)
    method = randomised(components)
    states = components.family.encode_prompts(components, ["a red house"])
    output = components.family.predict(components, torch.randn(1, 4, 16, 16), torch.tensor([500]), states)
    output.square().mean().backward()
    for part, weights in method.parameter_groups().items():
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights), part


def test_the_seed_decides_the_start_and_the_format_does_not(folder: Path) -> None:
    states = []
    for dtype, seed in ((torch.float32, 5), (torch.bfloat16, 5), (torch.float32, 6)):
        method = LoraMethod(BOTH)
        method.attach(load(folder, dtype), seed=seed)
        states.append(method.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


# The others are for SDXL, or for what a user writes: tests/unit/test_adapter_structure.py.
@pytest.mark.parametrize("targets", sorted({*get_args(UnetTargets)} - {"style-blocks", "content-blocks", "pattern"}))
def test_named_sets_hold_what_they_say_and_nothing_that_other_tools_skip(folder: Path, targets: UnetTargets) -> None:
    components = load(folder)
    kinds = {name: type(module) for name, module in components.unet.named_modules()}
    method = LoraMethod(AdapterConfig(unet=UnetLora(rank=2, targets=targets)))
    method.attach(components, seed=0)
    paths = [path.removeprefix("unet.") for path in method.export_modules()]
    assert not [path for path in paths if path.startswith(("conv_in", "conv_out", "time_embedding"))]
    convolutions = [path for path in paths if kinds[path] is nn.Conv2d and not path.endswith(("proj_in", "proj_out"))]
    assert bool(convolutions) == (targets == "all+conv")
    assert any(path.endswith("ff.net.2") for path in paths) == (targets not in ("attention", "attention-qv"))
    assert any(path.endswith("proj_in") for path in paths) == (targets in ("all-linear", "all+conv"))
    assert any(path.endswith("time_emb_proj") for path in paths) == (targets in ("all-linear", "all+conv"))


def test_a_part_of_rank_zero_is_left_alone(folder: Path) -> None:
    method = LoraMethod(AdapterConfig(unet=UnetLora(rank=0), text_encoder=TextEncoderLora(rank=2, targets="attention")))
    method.attach(load(folder), seed=0)
    assert set(method.parameter_groups()) == {"text_encoder"}
    endings = {path.rsplit(".", 1)[-1] for path in method.export_modules()}
    # Readers need all four to know the file's kind.
    assert endings == {"q_proj", "k_proj", "v_proj", "out_proj"}


def test_state_goes_round_and_strange_state_is_refused(folder: Path) -> None:
    method = randomised(load(folder))
    saved = {name: weight.clone() for name, weight in method.state_dict().items()}
    other = LoraMethod(BOTH)
    other.attach(load(folder), seed=9)
    other.load_state_dict(saved)
    assert all(torch.equal(weight, saved[name]) for name, weight in other.state_dict().items())
    name = next(iter(saved))
    with pytest.raises(RunError) as caught:
        other.load_state_dict({**saved, name: torch.zeros(1, 1)})
    assert caught.value.findings[0].where == name


def test_a_rank_beyond_the_layers_is_noted(folder: Path) -> None:
    method = LoraMethod(AdapterConfig(unet=UnetLora(rank=64)))
    method.attach(load(folder), seed=0)
    assert "Rank 64" in method.notes()[0]
    modest = LoraMethod(AdapterConfig(unet=UnetLora(rank=4)))
    modest.attach(load(folder), seed=0)
    assert modest.notes() == []
