"""What a stack does to pictures: every kind of LoRA, block weights, and LoRAs for a part of the sampling steps.

Each picture is compared with one whose weights were set by hand, from formulas written out in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.random_lora import random_lora
from tests.tiny_model import make_tiny_model
from tests.unit.test_lora_kinds import CASES, Draw, f64
from trainer.block_names import block_of
from trainer.errors import ConfigError
from trainer.lora_files.file import LoraModule, write_lora
from trainer.lora_files.names import kohya_name
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling import schedule as schedule_module
from trainer.sampling.sampler import SampleRequest, sample
from trainer.sampling.schedule import COSTS, Costs, StackSchedule, Way
from trainer.sampling.stack import LoraStack, StackEntry

STEPS = 6
REQUEST = SampleRequest("a zib robot", "blue", 64, 64, STEPS, "Euler", 3.0, 11)
BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
Dense = dict[str, Tensor]
"""Changes of parameters by their path ("unet.….weight"), float64."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def components(folder: Path) -> Components:
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


def parameters(components: Components) -> Dense:
    parts = components.adaptable.items()
    return {f"{part}.{path}": value for part, model in parts for path, value in model.named_parameters()}


class ByHand:
    """Weights set step by step from dense changes: what a schedule has to come to."""

    def __init__(self, components: Components, steps: Sequence[Dense]) -> None:
        self._live = parameters(components)
        self._base = {path: value.detach().double().clone() for path, value in self._live.items()}
        self._steps = steps

    def begin(self, num_steps: int, positions: int, batch: int) -> None:
        assert num_steps == len(self._steps)

    def at(self, step: int) -> bool:
        with torch.no_grad():
            for path, value in self._live.items():
                value.copy_(self._base[path] + self._steps[step].get(path, 0.0))
        return True

    def end(self) -> None:
        with torch.no_grad():
            for path, value in self._live.items():
                value.copy_(self._base[path])


def latents(components: Components, schedule: StackSchedule | ByHand | None) -> Tensor:
    """The model's last idea of the picture's latents: finer than pixels."""
    kept: list[Tensor] = []
    sample(components, [REQUEST], on_step=lambda _step, _total, now: kept.append(now), schedule=schedule)
    return kept[-1]


def dense(modules: dict[str, LoraModule], weight_of: Callable[[str], float]) -> Dense:
    """By the definition: alpha / rank * up @ down, times the layer's weight."""
    found: Dense = {}
    for path, module in modules.items():
        up, down = module.up.double().flatten(1), module.down.double().flatten(1)
        shape = (module.up.shape[0], *module.down.shape[1:])
        found[f"{path}.weight"] = (up @ down).reshape(shape) * (module.alpha / module.down.shape[0] * weight_of(path))
    return found


def total(*changes: Dense) -> Dense:
    return {path: sum(c[path] for c in changes if path in c) for path in {p for c in changes for p in c}}  # type: ignore[misc]


@pytest.fixture
def loras(components: Components, tmp_path: Path) -> dict[str, dict[str, LoraModule]]:
    found = {
        name: random_lora(components, rank=2 + seed, alpha=3.0, seed=seed, size=0.25) for seed, name in enumerate("ab")
    }
    for name, modules in found.items():
        write_lora(tmp_path / f"{name}.safetensors", modules, {}, "fp32")
    return found


# --- kinds ------------------------------------------------------------------------------------------------------------


class Scripted(Draw):
    """Draws the sizes of a given layer; the tensors stay random."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers: Iterator[int] = iter((3, 4, *numbers))
        super().__init__(len(numbers) + sum(numbers))

    def number(self, low: int, high: int) -> int:
        return next(self._numbers)


LINEAR, CONV, NORM = f"{BLOCK}.attn1.to_q", "unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.resnets.0.norm1"
# The sizes that each case asks for, in its order; all layers have 16 channels.
KINDS = {
    "lora": (LINEAR, (16, 16, 0)),
    "tucker": (CONV, (16, 16)),
    "loha": (CONV, (16, 16, 2)),
    "loha tucker": (CONV, (16, 16)),
    "lokr": (CONV, (4, 2, 4, 8, 2, 1, 2)),
    "full": (CONV, (16, 16, 2)),
    "norm": (NORM, (16,)),
    "dora of lora, rows": (LINEAR, (16, 16, 0)),
    "dora of lora, columns": (CONV, (16, 16, 2)),
    "dora of loha": (LINEAR, (16, 16, 0)),
    "dora of lokr": (LINEAR, (2, 8, 8, 2, 0, 0, 1)),
    "dora of tucker": (CONV, (16, 16)),
    "ia3": (LINEAR, (16, 16, 0, 1)),
    "oft": (CONV, (4, 4, 1, 16, 2, 1)),
    "boft": (LINEAR, (2, 2, 2, 16, 0)),
}


def test_every_kind_together_makes_the_picture_of_the_dense_sum(components: Components, tmp_path: Path) -> None:
    assert KINDS.keys() == CASES.keys()
    live = parameters(components)
    before = latents(components, None)
    changes: list[Dense] = []
    entries: list[StackEntry] = []
    for index, (kind, (layer, numbers)) in enumerate(KINDS.items()):
        shape, parts, formula = CASES[kind](Scripted(numbers))
        base = live[f"{layer}.weight"].detach().double().numpy()
        assert shape == base.shape, kind
        path = tmp_path / f"{index}.safetensors"
        save_file({f"{kohya_name(layer)}.{part}": tensor.contiguous() for part, tensor in parts.items()}, path)
        weight = (0.06 + 0.01 * index) * (-1) ** index
        change = np.asarray(formula(f64(parts), base)).reshape(shape)
        changes.append({f"{layer}.weight": torch.from_numpy(change) * weight})
        entries.append(StackEntry(path, weight))
    wanted = latents(components, ByHand(components, [total(*changes)] * STEPS))
    found = latents(components, StackSchedule(LoraStack(components), components, entries))
    assert (wanted - before).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "weight_of"),
    [
        ("MID", lambda block: float(block == "MID")),
        ("rest:0.5,down0:-1,OUT04:2", lambda b: {"IN01": -1.0, "IN02": -1.0, "IN03": -1.0, "OUT04": 2.0}.get(b, 0.5)),
    ],
)
def test_block_weights_scale_all_layers_of_their_blocks(
    components: Components, loras: dict, tmp_path: Path, blocks: str, weight_of: Callable[[str], float]
) -> None:
    def weight(path: str) -> float:
        return weight_of(block_of(path)) * (0.8 if path.startswith("unet.") else 0.4)

    base = {path: value.detach().double().clone() for path, value in parameters(components).items()}
    change = dense(loras["a"], weight)
    wanted = latents(components, ByHand(components, [change] * STEPS))
    stack = LoraStack(components)
    plain = latents(components, StackSchedule(stack, components, [StackEntry(tmp_path / "a.safetensors", 0.8, 0.4)]))
    entry = StackEntry(tmp_path / "a.safetensors", 0.8, 0.4, blocks)
    found = latents(components, StackSchedule(stack, components, [entry]))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert (plain - wanted).abs().max() > 0.05
    for path, value in parameters(components).items():
        torch.testing.assert_close(value.detach().double(), base[path] + change.get(path, 0.0), atol=1e-5, rtol=1e-5)
    assert any("conv" in path for path in stack.touched)


def test_block_weights_for_another_model_are_refused_before_anything_changes(
    components: Components, loras: dict, tmp_path: Path
) -> None:
    stack = LoraStack(components)
    with pytest.raises(ConfigError, match="12 blocks on each side"):
        stack.set([StackEntry(tmp_path / "a.safetensors", blocks=",".join("1" * 17))])
    assert stack.touched == frozenset()


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["merged", "beside"])
def test_a_lora_for_some_steps_is_the_picture_of_weights_changed_by_hand(
    components: Components, loras: dict, tmp_path: Path, way: Way
) -> None:
    first, second = (dense(loras[name], lambda path: 0.7 if path.startswith("unet.") else 0.9) for name in "ab")
    steps = [first, first, total(first, second), second, second, {}]
    wanted = latents(components, ByHand(components, steps))
    before = {path: value.detach().clone() for path, value in parameters(components).items()}
    stack = LoraStack(components)
    entries = [
        StackEntry(tmp_path / "a.safetensors", 0.7, 0.9, end=0.5),
        StackEntry(tmp_path / "b.safetensors", 0.7, 0.9, start=2 / STEPS, end=5 / STEPS),
    ]
    schedule = StackSchedule(stack, components, entries, way)
    found = latents(components, schedule)
    assert len(schedule.beside) == (2 if way == "beside" else 0)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    # The same again, from where the last picture left the weights.
    torch.testing.assert_close(latents(components, schedule), found, atol=1e-5, rtol=1e-5)
    constant = latents(components, StackSchedule(stack, components, [StackEntry(e.path, 0.7, 0.9) for e in entries]))
    assert (constant - wanted).abs().max() > 0.05
    stack.clear()
    assert all(torch.equal(value, before[path]) for path, value in parameters(components).items())
    torch.testing.assert_close(latents(components, None), latents(components, ByHand(components, [{}] * STEPS)))


def test_a_lora_on_the_words_alone_works_in_its_steps_only(components: Components, loras: dict, tmp_path: Path) -> None:
    change = dense(loras["a"], lambda path: 0.0 if path.startswith("unet.") else 2.0)
    wanted = latents(components, ByHand(components, [{}] * 3 + [change] * 3))
    entries = [StackEntry(tmp_path / "a.safetensors", 0.0, 2.0, start=0.5)]
    found = latents(components, StackSchedule(LoraStack(components), components, entries))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert (found - latents(components, None)).abs().max() > 1e-3


def test_the_cheaper_way_is_taken(
    components: Components, loras: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(min(vars(costs).values()) > 0 for costs in COSTS.values())

    def beside(costs: Costs, **span: float) -> int:
        monkeypatch.setitem(schedule_module.COSTS, "cpu", costs)
        schedule = StackSchedule(LoraStack(components), components, [StackEntry(tmp_path / "a.safetensors", **span)])
        schedule.begin(20, 512, 2)
        return len(schedule.beside)

    equal = Costs(1e-3, 0, 1e-3, 0, 0)  # a change costs what a step beside the weights costs
    assert beside(equal, end=0.1) == 0
    assert beside(equal, start=0.5, end=0.55) == 1
    assert beside(equal, start=0.2, end=0.8) == 0
    assert beside(equal) == 0
    assert beside(Costs(1.0, 0, 1e-3, 0, 0), start=0.2, end=0.8) == 1


def test_a_kind_that_is_no_product_is_merged(components: Components, tmp_path: Path) -> None:
    save_file({f"{kohya_name(CONV)}.diff": torch.ones(16, 16, 3, 3)}, tmp_path / "full.safetensors")
    schedule = StackSchedule(
        LoraStack(components), components, [StackEntry(tmp_path / "full.safetensors", end=0.5)], "beside"
    )
    schedule.begin(STEPS, 512, 2)
    assert schedule.beside == ()


# --- no drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_a_hundred_changes_leave_no_trace(folder: Path, loras: dict, tmp_path: Path, dtype: torch.dtype) -> None:
    components = load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), dtype)
    before = {path: value.detach().clone() for path, value in parameters(components).items()}
    stack, other = LoraStack(components), None
    some = "rest:0, mid:1, base:0.5"  # attention, convolutions and text encoder, in a quarter of the time
    for cycle in range(100):
        entries = [StackEntry(tmp_path / f"{name}.safetensors", 0.1 * (cycle % 17 - 8), 0.3, some) for name in "ab"]
        stack.set(entries[: 1 + cycle % 2])
        if cycle == 7:
            other = {path: value.detach().clone() for path, value in parameters(components).items()}
    assert other is not None
    stack.set([StackEntry(tmp_path / f"{name}.safetensors", 0.1 * (7 - 8), 0.3, some) for name in "ab"])
    assert all(torch.equal(value, other[path]) for path, value in parameters(components).items())
    stack.clear()
    assert all(torch.equal(value, before[path]) for path, value in parameters(components).items())
