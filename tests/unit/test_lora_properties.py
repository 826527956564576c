"""Random LoRAs of random kinds, shapes, ranks, alphas and precisions: written and read they change the same, and a merge is the sum."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_files.modules import AdapterModule, LohaModule, LokrModule
from trainer.lora_tools.merge import MergeInput, MergeOptions, merge_loras

LINEAR = [f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_attn1_to_{p}" for i in range(3) for p in "qkv"]
CONVOLUTIONS = [f"lora_unet_up_blocks_{i}_resnets_{j}_conv1" for i in range(3) for j in range(2)]
METADATA = {"ss_base_model_version": "sd_v1"}
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
SIDES = (4, 6, 12, 20)

Shapes = dict[str, tuple[int, ...]]


@st.composite
def architectures(draw: st.DrawFn) -> Shapes:
    """Some layers, each with the shape of its weight."""
    side = st.sampled_from(SIDES)
    linear = draw(st.lists(st.sampled_from(LINEAR), unique=True, min_size=1, max_size=3))
    convolutions = draw(st.lists(st.sampled_from(CONVOLUTIONS), unique=True, max_size=2))
    shapes: Shapes = {name: (draw(side), draw(side)) for name in linear}
    for name in convolutions:
        kernel = draw(st.sampled_from((1, 3)))
        shapes[name] = (draw(side), draw(side), kernel, kernel)
    return shapes


@st.composite
def modules(draw: st.DrawFn, shape: tuple[int, ...], low: bool) -> AdapterModule:
    """A change of a weight of this shape, of any kind that is a product; `low` keeps every kind's product of low rank."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rank, alpha = draw(st.integers(1, 6)), draw(st.sampled_from((0.5, 1.0, 3.0, 4.0, 16.0)))

    def tensor(*sides: int) -> Tensor:
        return torch.randn(sides, generator=generator) * 0.4

    out, into, kernel = shape[0], shape[1], tuple(shape[2:])
    ones = (1,) * len(kernel)
    kind = draw(st.sampled_from(("lora", "loha", "lokr", "tucker") if kernel else ("lora", "loha", "lokr")))
    if low and kind in ("loha", "lokr"):
        rank = 1  # LoHa's product has its square, LoKr's here its double
    if kind == "tucker":
        return LoraModule(tensor(rank, into, *ones), tensor(out, rank, *ones), alpha, tensor(rank, rank, *kernel))
    if kind == "loha":
        columns = into * (kernel[0] ** 2 if kernel else 1)
        pairs = [(tensor(out, rank), tensor(rank, columns)) for _ in range(2)]
        return LohaModule(pairs[0], pairs[1], alpha)
    if kind == "lokr":
        return LokrModule(
            (tensor(2, 2),),
            (tensor(out // 2, rank), tensor(rank, into // 2 * (kernel[0] ** 2 if kernel else 1))),
            alpha,
        )
    return LoraModule(tensor(rank, into, *kernel), tensor(out, rank, *ones), alpha)


@st.composite
def files(draw: st.DrawFn, shapes: Shapes, low: bool = False) -> dict[str, AdapterModule]:
    """A LoRA on some of the layers."""
    chosen = draw(st.lists(st.sampled_from(sorted(shapes)), unique=True, min_size=1))
    return {name: draw(modules(shapes[name], low)) for name in chosen}


def deltas(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """What a file changes, by layer."""
    return {name: module.delta_weight(torch.zeros(shapes[name])) for name, module in read_lora(path).modules.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), dtype=st.sampled_from(sorted(TOLERANCE)))
def test_a_written_file_changes_what_was_written(data: st.DataObject, dtype: str) -> None:
    shapes = data.draw(architectures())
    lora = data.draw(files(shapes))
    with tempfile.TemporaryDirectory() as folder:
        write_lora(Path(folder) / "a.safetensors", lora, METADATA, dtype)
        found = deltas(Path(folder) / "a.safetensors", shapes)
        # Once more: what was read and written again is bit for bit the same.
        write_lora(Path(folder) / "b.safetensors", read_lora(Path(folder) / "a.safetensors").modules, METADATA, dtype)
        again = deltas(Path(folder) / "b.safetensors", shapes)
    assert found.keys() == lora.keys()
    for name, module in lora.items():
        expected = module.delta_weight(torch.zeros(shapes[name]))
        assert (found[name] - expected).norm() <= TOLERANCE[dtype] * expected.norm() + 1e-6, module.kind
        torch.testing.assert_close(again[name], found[name], atol=1e-5, rtol=TOLERANCE[dtype])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), weights=st.lists(st.sampled_from((-1.0, -0.3, 0.5, 1.0, 2.0)), min_size=1, max_size=3))
def test_an_exact_merge_is_the_weighted_sum(data: st.DataObject, weights: list[float]) -> None:
    shapes = data.draw(architectures())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, expected = [], {layer: torch.zeros(shape) for layer, shape in shapes.items()}
        for index, weight in enumerate(weights):
            lora = data.draw(files(shapes, low=True))
            write_lora(folder / f"{index}.safetensors", lora, METADATA, "fp32")
            inputs.append(MergeInput(folder / f"{index}.safetensors", weight, weight))
            for layer, module in lora.items():
                expected[layer] += weight * module.delta_weight(torch.zeros(shapes[layer]))
        merge_loras(inputs, folder / "merged.safetensors", MergeOptions(precision="fp32"))
        found = deltas(folder / "merged.safetensors", shapes)
    for layer, delta in expected.items():
        scale = max(float(delta.abs().max()), 1.0)
        assert float((found.get(layer, torch.zeros(shapes[layer])) - delta).abs().max()) <= 1e-4 * scale
