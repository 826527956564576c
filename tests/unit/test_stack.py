"""LoRAs merged into a model's weights and taken out again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.random_lora import ATTENTION, modules_for, random_lora
from tests.tiny_model import make_tiny_model
from trainer.errors import LoraFileError
from trainer.lora_files.file import LoraModule, write_lora
from trainer.lora_files.modules import AdapterModule, DifferenceModule, LohaModule, LokrModule
from trainer.lora_files.relative import DoraModule, Ia3Module, OftModule
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling import stack as stack_module
from trainer.sampling.stack import LoraStack, StackEntry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def components(folder: Path, request: pytest.FixtureRequest) -> Components:
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), request.param)


@pytest.fixture
def files(components: Components, tmp_path: Path) -> dict[str, tuple[Path, dict[str, LoraModule]]]:
    loras = {
        "all": random_lora(components, rank=3, alpha=6.0, seed=1),
        "attention": random_lora(components, rank=2, alpha=1.0, endings=ATTENTION, seed=2),
        "unet": {p: m for p, m in random_lora(components, seed=3).items() if p.startswith("unet.")},
    }
    for name, modules in loras.items():
        write_lora(tmp_path / f"{name}.safetensors", modules, {}, "fp32")
    return {name: (tmp_path / f"{name}.safetensors", modules) for name, modules in loras.items()}


def weights(components: Components) -> dict[str, Tensor]:
    return {
        f"{name}.{path}": parameter.detach().clone()
        for name, model in (("unet", components.unet), ("text_encoder", components.text_encoder))
        for path, parameter in model.named_parameters()
    }


def expected(before: dict[str, Tensor], *parts: tuple[dict[str, LoraModule], float, float]) -> dict[str, Tensor]:
    """By the definition: each LoRA's change is computed alone, in float64, and added."""
    sums = {key: tensor.double() for key, tensor in before.items()}
    for modules, unet_weight, text_weight in parts:
        for path, module in modules.items():
            weight = unet_weight if path.startswith("unet.") else text_weight
            up, down = module.up.double().flatten(1), module.down.double().flatten(1)
            key = f"{path}.weight"
            sums[key] += (up @ down).reshape(sums[key].shape) * (weight * module.alpha / module.down.shape[0])
    return {key: tensor.to(before[key].dtype) for key, tensor in sums.items()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, msg=lambda text, key=key: f"{key}: {text}")


def test_merging_is_the_definition_for_several_loras_and_weights(components: Components, files: dict) -> None:
    before, stack = weights(components), LoraStack(components)
    stack.set([StackEntry(files["all"][0], 0.7, -0.3), StackEntry(files["attention"][0], 1.5, 2.0)])
    wanted = expected(before, (files["all"][1], 0.7, -0.3), (files["attention"][1], 1.5, 2.0))
    assert any(path.startswith("text_encoder.") for path in stack.touched)
    assert any(".conv1" in path for path in stack.touched)
    assert not torch.equal(
        wanted["unet.mid_block.resnets.0.conv1.weight"], before["unet.mid_block.resnets.0.conv1.weight"]
    )
    assert_equal(weights(components), wanted)


def test_taking_out_restores_every_bit_after_many_changes(components: Components, files: dict) -> None:
    before, stack = weights(components), LoraStack(components)
    for cycle in range(20):
        stack.set([StackEntry(files[name][0], cycle / 7 - 1, 0.3 * cycle) for name in list(files)[: cycle % 3 + 1]])
    stack.clear()
    after = weights(components)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert stack.touched == frozenset()


def test_the_way_to_a_stack_does_not_matter(components: Components, files: dict) -> None:
    stack = LoraStack(components)
    goal = [StackEntry(files["all"][0], 0.5, 0.5), StackEntry(files["unet"][0])]
    stack.set(goal)
    direct = weights(components)
    stack.set([StackEntry(files["attention"][0], 3.0, 3.0)])
    stack.set([*goal, StackEntry(files["attention"][0])])
    stack.set(goal)
    detour = weights(components)
    assert all(torch.equal(direct[key], detour[key]) for key in direct)


class Operators(TorchDispatchMode):
    """Records what torch is asked to do, with the shapes and number formats of the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[tuple[torch.Size, torch.dtype], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), tuple((a.shape, a.dtype) for a in args if isinstance(a, Tensor))))
        return func(*args, **(kwargs or {}))


def test_a_step_with_loras_is_the_same_work_as_without(components: Components, files: dict) -> None:
    def step() -> tuple[list[Any], Tensor]:
        latents = torch.ones((1, 4, 8, 8), dtype=components.dtype)
        states = torch.ones((1, 4, components.unet.config.cross_attention_dim), dtype=components.dtype)
        with torch.no_grad(), Operators() as operators:
            made = components.unet(latents, torch.tensor(500), encoder_hidden_states=states).sample
        return operators.calls, made

    work, without = step()
    LoraStack(components).set([StackEntry(path) for path, _ in files.values()])
    now, made = step()
    assert len(work) > 100
    assert now == work
    assert not torch.equal(made, without)


def test_weight_zero_is_the_base_model_bit_for_bit(components: Components, files: dict) -> None:
    before, stack = weights(components), LoraStack(components)
    assert stack.set([StackEntry(files["all"][0], 0.0, 0.0)]) == 0
    stack.set([StackEntry(files["all"][0], 1.0, 0.0)])
    after = weights(components)
    for key in before:
        if key.startswith("text_encoder."):
            assert torch.equal(after[key], before[key])


def test_only_what_changed_is_written(components: Components, files: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = LoraStack(components)
    reads: list[Path] = []
    real = stack_module.read_lora
    monkeypatch.setattr(stack_module, "read_lora", lambda path: (reads.append(path), real(path))[1])
    everything, attention = StackEntry(files["all"][0]), StackEntry(files["attention"][0])
    assert stack.set([everything, attention]) == len(files["all"][1])
    assert stack.set([everything, attention]) == 0
    only_text = StackEntry(files["attention"][0], 1.0, 0.5)
    assert stack.set([everything, only_text]) == sum(p.startswith("text_encoder.") for p in files["attention"][1])
    assert stack.set([everything]) == len(files["attention"][1])
    assert len(reads) == 2
    os.utime(files["all"][0], ns=(1, 1))
    assert stack.set([everything]) == len(files["all"][1])
    assert len(reads) == 3


def test_one_file_twice_counts_twice(components: Components, files: dict) -> None:
    before, stack = weights(components), LoraStack(components)
    stack.set([StackEntry(files["unet"][0], 0.25), StackEntry(files["unet"][0], 0.5)])
    assert_equal(weights(components), expected(before, (files["unet"][1], 0.75, 0.75)))


def test_a_file_that_does_not_fit_changes_nothing(components: Components, files: dict, tmp_path: Path) -> None:
    stack = LoraStack(components)
    stack.set([StackEntry(files["all"][0])])
    before = weights(components)
    write_lora(tmp_path / "big.safetensors", modules_for({next(iter(files["all"][1])): (999, 999)}), {}, "fp16")
    for path, word in ((tmp_path / "big.safetensors", "does not fit"), (tmp_path / "gone.safetensors", "not there")):
        with pytest.raises(LoraFileError, match=word):
            stack.set([StackEntry(files["attention"][0]), StackEntry(path)])
        after = weights(components)
        assert all(torch.equal(after[key], before[key]) for key in before)
    stack.set([StackEntry(files["all"][0], 0.5, 0.5)])


def test_unknown_layers_are_told(components: Components, files: dict, tmp_path: Path) -> None:
    extra = {**files["all"][1], **modules_for({"unet.add_embedding.linear_1": (4, 4)})}
    write_lora(tmp_path / "extra.safetensors", extra, {}, "fp32")
    stack = LoraStack(components)
    stack.set([StackEntry(tmp_path / "extra.safetensors"), StackEntry(files["unet"][0])])
    assert stack.unknown == {"extra": ("lora_unet_add_embedding_linear_1",)}


def other_kinds(components: Components) -> dict[str, AdapterModule]:
    """One layer of each kind that is not a product, with a norm and a bias."""
    layers = dict(components.unet.named_modules())
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    conv = "mid_block.resnets.0.conv1"
    out, inputs = layers[f"{block}.attn1.to_q"].weight.shape
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    low_rank = LoraModule(draw(2, inputs), draw(out, 2), 2.0)
    kernel = layers[conv].weight.shape
    return {
        f"unet.{block}.attn1.to_q": DoraModule(low_rank, draw(1, inputs).abs() + 0.5, 1),
        f"unet.{block}.attn1.to_k": LohaModule((draw(out, 2), draw(2, inputs)), (draw(out, 2), draw(2, inputs)), 1.0),
        f"unet.{block}.attn1.to_v": Ia3Module(draw(out), on_input=False),
        f"unet.{block}.attn1.to_out.0": OftModule(draw(2, out // 2, out // 2)),
        f"unet.{block}.attn1.to_out.0.bias": DifferenceModule(draw(out), "diff_b"),
        f"unet.{block}.norm1": DifferenceModule(draw(out), "w_norm"),
        f"unet.{block}.norm1.bias": DifferenceModule(draw(out), "b_norm"),
        f"unet.{conv}": LokrModule((draw(2, 2),), (draw(kernel[0] // 2, kernel[1] // 2, *kernel[2:]),), 1.0),
    }


def test_every_kind_is_merged_on_the_base_weight_and_taken_out_exactly(
    components: Components, files: dict, tmp_path: Path
) -> None:
    modules, before, stack = other_kinds(components), weights(components), LoraStack(components)
    write_lora(tmp_path / "kinds.safetensors", modules, {}, "fp32")
    wanted = expected(before, (files["unet"][1], -0.4, 0.0))
    parts = {key: tensor.double() for key, tensor in expected_sums(before, files["unet"][1], -0.4).items()}
    for path, module in modules.items():
        key = path if path.endswith(".bias") else f"{path}.weight"
        parts[key] = parts[key] + 0.7 * module.delta_weight(before[key]).double()
        wanted[key] = parts[key].to(before[key].dtype)
    entries = [StackEntry(tmp_path / "kinds.safetensors", 0.7), StackEntry(files["unet"][0], -0.4, 0.0)]
    stack.set(entries)
    assert stack.unknown == {}
    assert modules.keys() <= stack.touched
    found = weights(components)
    assert_equal(found, wanted)
    stack.set(entries[::-1])
    for key, tensor in weights(components).items():
        torch.testing.assert_close(tensor, found[key])
    stack.clear()
    after = weights(components)
    assert all(torch.equal(after[key], before[key]) for key in before)


def expected_sums(before: dict[str, Tensor], modules: dict[str, LoraModule], weight: float) -> dict[str, Tensor]:
    sums = {key: tensor.double() for key, tensor in before.items()}
    for path, module in modules.items():
        sums[f"{path}.weight"] += weight * module.delta_weight(before[f"{path}.weight"]).double()
    return sums


@pytest.mark.parametrize("strengths", [(0.3,), (0.5, 0.5), (1.0, 0.25), (0.5, -0.25)])
@pytest.mark.parametrize("shape", [(300, 900), (40, 20, 3, 3)])
def test_a_layer_is_the_weighted_sum_in_every_memory_layout(
    shape: tuple[int, ...], strengths: tuple[float, ...]
) -> None:
    modules = [modules_for({"x": shape}, seed=seed, size=1.0)["x"] for seed in range(len(strengths))]
    base = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    layouts = (torch.contiguous_format, torch.channels_last) if len(shape) == 4 else (torch.contiguous_format,)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        original = base.to(dtype)
        wanted = original.double()
        for module, strength in zip(modules, strengths, strict=True):
            change = module.up.double().flatten(1) @ module.down.double().flatten(1)
            wanted = wanted + change.reshape(shape) * (strength * module.alpha / module.rank)
        for layout in layouts:
            weight = torch.zeros_like(original, memory_format=layout)
            stack_module.LayerSum(modules, weight.device).merge(
                weight, original.contiguous(memory_format=layout), strengths
            )
            torch.testing.assert_close(weight, wanted.to(dtype), msg=lambda text, d=dtype: f"{d}: {text}")
