"""Checkpoints as folders, the optimizer's state, what may change between a stop and a resume, and the guard against NaN."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from trainer.adapters.method import grouped, take_over
from trainer.config.optimizer import OPTIMIZERS, OptimizerConfig
from trainer.config.run import RunConfig
from trainer.errors import ChangedRunError, NonFiniteLossError, RunError
from trainer.events import EventWriter, StepDone, read_events
from trainer.objects import load_object
from trainer.optimizers.adamw import build
from trainer.optimizers.average import WeightAverage
from trainer.training.checkpoint import Checkpoint, CheckpointStore, pack_optimizer, unpack_optimizer
from trainer.training.distributed import Ranks
from trainer.training.identity import machine_notes, require_same
from trainer.training.report import Reporter
from trainer.training.resume import load_checkpoint
from trainer.training.state import TrainState
from trainer.training.step import FiniteGuard, StepResult
from trainer.training.weight_order import is_same_order, weight_order

AVAILABLE = [name for name, facts in OPTIMIZERS.items() if not facts.requires[0] or find_spec(facts.requires[0])]


def make_checkpoint(step: int) -> Checkpoint:
    return Checkpoint({"a": torch.full((2, 2), float(step))}, {"0.step": torch.tensor(float(step))}, {"step": step})


def test_newest_is_what_was_saved_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.newest() == (None, [])
    for step in (5, 10, 9_999, 100_000):
        store.save(step, make_checkpoint(step))
    found, warnings = store.newest()
    assert found is not None
    assert found.state == {"step": 100_000}
    assert torch.equal(found.adapter["a"], torch.full((2, 2), 100_000.0))
    assert warnings == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00009999", "step-00100000"]


def test_the_oldest_stays_until_the_newest_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, make_checkpoint(1))
    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda path, data: write(path, data[:-1] if path.name == "adapter.safetensors" else data)
    )
    with pytest.raises(RunError, match="not written correctly"):
        store.save(2, make_checkpoint(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found, _ = store.newest()
    assert found is not None


OPERATIONS = [(Path, name) for name in ("write_bytes", "read_bytes", "read_text", "mkdir")] + [
    (module, name) for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"))
]


class Fault:
    """Every file operation from the `at`-th on ends the process (as SIGKILL does), or the `at`-th alone has an I/O error."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, kills: bool) -> None:
        self.count, self.at, self.kills = 0, at, kills
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.kills and self.count >= self.at:
                raise KeyboardInterrupt
            if self.count == self.at:
                raise OSError(errno.EIO, "Input/output error", "a file")
            return real(*arguments, **options)

        return call


@pytest.mark.parametrize("kills", [True, False], ids=["killed", "error"])
def test_no_fault_in_any_file_operation_costs_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kills: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no power is cut here
    start = tmp_path / "start"
    CheckpointStore(start, keep=1).save(2, make_checkpoint(2))
    (start / "step-00000003").mkdir()  # a damaged one from before, which must not count as the one to keep
    for at in range(1, 200):
        folder = Path(shutil.copytree(start, tmp_path / str(at)))
        store = CheckpointStore(folder, keep=1)
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, at, kills=kills)
            with contextlib.suppress(KeyboardInterrupt, OSError, RunError):
                store.save(3, make_checkpoint(3))
        found, _ = CheckpointStore(folder, keep=1).newest()
        assert found is not None, f"nothing is left after a fault in operation {at}"
        assert found.state["step"] in (2, 3)
        assert torch.equal(found.adapter["a"], torch.full((2, 2), float(found.state["step"])))
        store.save(4, make_checkpoint(4))
        assert [path.name for path in folder.iterdir()] == ["step-00000004"], f"operation {at} left something behind"
        if fault.count < at:
            assert at > 20
            return
    raise AssertionError("a save has fewer file operations than that")


def test_a_damaged_later_checkpoint_does_not_push_the_good_one_out(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    broken = store.save(9, make_checkpoint(9))
    (broken / "state.json").write_text("{}")
    store.save(5, make_checkpoint(5))
    found, warnings = store.newest()
    assert found is not None
    assert found.state == {"step": 5}
    assert warnings == []


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    path = store.save(1, make_checkpoint(1))
    (path / "state.json").write_text("{}")
    assert store.newest()[0] is None
    store.save(1, make_checkpoint(1))
    found, warnings = store.newest()
    assert found is not None
    assert warnings == []


def test_a_checkpoint_of_a_newer_program_is_refused_not_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(1, make_checkpoint(1))
    path = store.save(2, make_checkpoint(2)) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(RunError, match="version 2"):
        store.newest()


def step_with(optimizer: torch.optim.Optimizer, weight: nn.Parameter, seed: int) -> None:
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()


@pytest.mark.parametrize("name", AVAILABLE)
def test_an_optimizer_goes_on_bit_by_bit(tmp_path: Path, name: str) -> None:
    config = OptimizerConfig.model_validate({"name": name, "unet_learning_rate": 1e-3})
    # bitsandbytes keeps 8 bits only of tensors that are large enough.
    start = {"a": torch.randn(64, 96), "b": torch.zeros(96, 8), "c": torch.randn(8)}
    first = [nn.Parameter(weight) for weight in start.values()]
    optimizer = load_object(config.implementation)(config, {"unet": first[:2], "text_encoder": first[2:]})
    for seed in range(3):
        steps_with(optimizer, first, seed)
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, Checkpoint(dict(zip(start, first, strict=True)), pack_optimizer(optimizer), {}))
    loaded, _ = store.newest()
    assert loaded is not None
    second = [nn.Parameter(loaded.adapter[key].clone()) for key in start]
    other = load_object(config.implementation)(config, {"unet": second[:2], "text_encoder": second[2:]})
    unpack_optimizer(other, loaded.optimizer)
    for seed in range(3, 6):
        steps_with(optimizer, first, seed)
        steps_with(other, second, seed)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not torch.equal(first[0].detach(), loaded.adapter["a"])


def steps_with(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


def test_an_average_goes_on_bit_by_bit(tmp_path: Path) -> None:
    first = nn.Parameter(torch.ones(64))
    average = WeightAverage([first], 0.6)
    optimizer = build(OptimizerConfig(unet_learning_rate=0.1), {"unet": [first]})
    for seed in range(3):
        step_with(optimizer, first, seed)
        average.update()
    store = CheckpointStore(tmp_path, keep=1)
    folder = store.save(3, Checkpoint({"w": first}, {}, {}, average.state_dict()))
    loaded, _ = store.newest()
    assert loaded is not None
    second = nn.Parameter(first.detach().clone())
    other = WeightAverage([second], 0.6)
    other.load_state_dict(loaded.average, 3)
    for seed in range(3, 20):
        step_with(optimizer, first, seed)
        with torch.no_grad():
            second.copy_(first)
        average.update()
        other.update()
    assert torch.equal(average.state_dict()["0"], other.state_dict()["0"])
    (folder / "average.safetensors").unlink()
    assert store.newest()[0] is None, "a checkpoint without its average is damaged"


def test_the_state_of_adamw_of_older_checkpoints_is_read() -> None:
    """What the first version wrote: tensors by `<weight>.<name>` and nothing of the groups."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = build(OptimizerConfig(), {"unet": [weight]})
    packed = {"0.step": torch.tensor(7.0), "0.exp_avg": torch.full((4,), 0.5), "0.exp_avg_sq": torch.full((4,), 0.25)}
    unpack_optimizer(optimizer, packed)
    assert {f"0.{name}": value.tolist() for name, value in optimizer.state[weight].items()} == {
        name: value.tolist() for name, value in packed.items()
    }
    assert set(pack_optimizer(optimizer)) == set(packed)


class Layers:
    """Two layers of the same size, grouped as the settings of an adapter say."""

    def __init__(self, **adapter: Any) -> None:
        self.config = RunConfig.model_validate({"adapter": adapter}).adapter
        self.weights = {f"unet.{path}": nn.Parameter(torch.ones(4, 4)) for path in ("a.up", "a.down", "b.up", "b.down")}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return grouped(self.config, self.weights.items())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self.weights.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        take_over(self.state_dict(), state)


def regrouping(accepted: dict[str, Any], optimizer: str = "adamw") -> tuple[Any, Any, Checkpoint, list[Any]]:
    """A run that did some steps, the same with other settings of its adapter, the first one's checkpoint, and what the other says."""
    config = OptimizerConfig.model_validate({"name": optimizer, "unet_learning_rate": 0.1})
    told: list[Any] = []

    def run(adapter: dict[str, Any]) -> Any:
        layers = Layers(**adapter)
        torch_optimizer = load_object(config.implementation)(config, layers.parameter_groups())
        trainable = [weight for weights in layers.parameter_groups().values() for weight in weights]
        return SimpleNamespace(
            adapter=layers,
            trainable=trainable,
            optimizer=SimpleNamespace(optimizer=torch_optimizer),
            fresh_optimizer=pack_optimizer(torch_optimizer),
            average=WeightAverage(trainable, 0.5),
            config=SimpleNamespace(optimizer=config),
            identity=identity(
                settings={"optimizer.name": optimizer, **{f"adapter.{k}": v for k, v in adapter.items()}}
            ),
            accelerator=SimpleNamespace(scaler=None),
            context=SimpleNamespace(emit=told.append),
        )

    before, after = run({}), run(accepted)
    for seed in range(3):
        steps_with(before.optimizer.optimizer, list(before.adapter.weights.values()), seed)
        before.average.update()
    state = {"train_state": TrainState(step=3).to_dict(), "identity": before.identity, "scaler": None}
    state["weights"] = weight_order(before.adapter)
    packed = pack_optimizer(before.optimizer.optimizer)
    return before, after, Checkpoint(before.adapter.state_dict(), packed, state, before.average.state_dict()), told


def averages(parts: Any) -> dict[str, list[Any]]:
    names = [name for names in weight_order(parts.adapter).values() for name in names]
    return {name: parts.average.state_dict()[str(index)].tolist() for index, name in enumerate(names)}


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free_adamw", "prodigy"])
@pytest.mark.parametrize(
    "accepted", [{"method": "loraplus"}, {"blocks": ["unet.b: rate=0.5"]}], ids=["loraplus", "rate"]
)
def test_weights_that_are_grouped_anew_do_not_get_anothers_memory(accepted: dict[str, Any], optimizer: str) -> None:
    before, after, saved, told = regrouping(accepted, optimizer)
    assert not is_same_order(weight_order(before.adapter), weight_order(after.adapter))
    for _ in range(2):  # at a resume, and when the run goes back to that checkpoint later
        load_checkpoint(after, saved)
        assert not after.optimizer.optimizer.state
        counted = pack_optimizer(after.optimizer.optimizer)
        assert all(torch.equal(counted[name], value) for name, value in after.fresh_optimizer.items())
        assert "other groups" in told[-1].message
        assert averages(after) == averages(before)
        steps_with(after.optimizer.optimizer, list(after.adapter.weights.values()), 9)
        after.average.update()


def test_the_memory_stays_where_the_groups_are_the_same_and_where_older_checkpoints_do_not_name_them() -> None:
    for accepted, is_named in (({}, True), ({}, False), ({"dropout": 0.1}, True)):
        before, after, saved, told = regrouping(accepted)
        if not is_named:
            del saved.state["weights"]
        load_checkpoint(after, saved)
        assert not told
        assert averages(after) == averages(before)
        for parts in (before, after):
            steps_with(parts.optimizer.optimizer, list(parts.adapter.weights.values()), 9)
        for name, weight in before.adapter.weights.items():
            assert torch.equal(weight, after.adapter.weights[name])
    before, after, saved, told = regrouping({"method": "loraplus"})
    del saved.state["weights"]
    load_checkpoint(after, saved)
    assert not after.optimizer.optimizer.state
    assert averages(after) == {name: weight.tolist() for name, weight in before.adapter.weights.items()}
    assert ["other groups" in told[0].message, "average begins" in told[1].message] == [True, True]


def identity(**changes: Any) -> dict[str, Any]:
    return {
        "settings": {"adapter.unet.rank": 4},
        "pictures": {"a.png": ["hash", "a house", 64, 64]},
        "base": {"unet": "x"},
        "noise": ["epsilon", False],
        "machine": {"torch": "2", "threads": 1},
    } | changes


def test_what_changed_is_named() -> None:
    assert require_same(identity(), identity()) == []
    changed = identity(
        settings={"adapter.unet.rank": 8},
        pictures={"a.png": ["hash", "a hut", 64, 64], "b.png": ["other", "", 64, 64]},
        base={"unet": "y"},
    )
    with pytest.raises(ChangedRunError) as caught:
        require_same(identity(), changed)
    text = str(caught.value)
    assert "was 4, is 8" in text
    assert all(part in text for part in ("adapter.unet.rank", "'a house'", "'a hut'", "b.png", "base model: unet"))
    accepted = require_same(identity(), changed, accept=True)
    assert [change.where for change in accepted] == [finding.where for finding in caught.value.findings]


def test_another_length_is_told_and_not_refused() -> None:
    before = identity(settings={"training.steps": 6})
    (change,) = require_same(before, identity(settings={"training.steps": 9}))
    assert str(change) == "training.steps: was 6, is 9"


def test_a_setting_that_is_younger_than_the_checkpoint_had_its_default() -> None:
    younger = {
        "adapter.unet.rank": 4,
        "training.ema_decay": 0.0,
        "objective.loss": "l2",
        "optimizer.prodigy.factor": 1.0,
    }
    assert require_same(identity(), identity(settings=younger)) == []
    with pytest.raises(ChangedRunError, match=r"training\.ema_decay"):
        require_same(identity(), identity(settings={**younger, "training.ema_decay": 0.9}))


def test_another_machine_is_a_note() -> None:
    other = identity(machine={"torch": "3", "threads": 1})
    assert require_same(identity(), other) == []
    notes = machine_notes(identity(), other)
    assert len(notes) == 1
    assert "torch" in notes[0]


def result(step: int, loss: float) -> StepResult:
    return StepResult(step, torch.tensor(loss), None, torch.tensor(1.0), (f"picture-{step}.png",))


def parts_with(optimizer: torch.optim.Optimizer) -> Any:
    return SimpleNamespace(accelerator=SimpleNamespace(scaler=None), optimizer=SimpleNamespace(optimizer=optimizer))


def test_the_guard_of_a_gpu_skips_the_broken_update_and_tells_later() -> None:
    weight = nn.Parameter(torch.ones(8))
    optimizer = build(OptimizerConfig(unet_learning_rate=0.1), {"unet": [weight]})
    guard, parts = FiniteGuard(deferred=True), parts_with(optimizer)
    guard.watch(parts, result(1, 0.5))
    step_with(optimizer, weight, 1)
    good = weight.detach().clone()
    assert not torch.equal(good, torch.ones(8))
    guard.watch(parts, result(2, float("nan")))
    weight.grad = torch.full((8,), float("nan"))
    optimizer.step()
    assert torch.equal(weight.detach(), good)
    with pytest.raises(NonFiniteLossError, match="step 2") as caught:
        guard.check()
    assert [finding.where for finding in caught.value.findings] == ["picture-2.png"]
    guard.check()


def test_the_guard_of_a_cpu_tells_before_the_update() -> None:
    guard = FiniteGuard(deferred=False)
    optimizer = build(OptimizerConfig(), {"unet": [nn.Parameter(torch.ones(1))]})
    guard.watch(parts_with(optimizer), result(1, 0.5))
    with pytest.raises(NonFiniteLossError, match="loss became NaN"):
        guard.watch(parts_with(optimizer), result(2, float("inf")))
    broken = StepResult(3, torch.tensor(0.5), None, torch.tensor(float("nan")), ())
    with pytest.raises(NonFiniteLossError, match="gradient"):
        guard.watch(parts_with(optimizer), broken)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_gradient_that_is_broken_at_every_scale_is_caught_and_one_that_overflows_is_not(deferred: bool) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = build(OptimizerConfig(unet_learning_rate=0.1), {"unet": [weight]})
    guard, parts = FiniteGuard(deferred=deferred), parts_with(optimizer)
    scaler = parts.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(number: int, gradient: float) -> None:
        scaler.scale(weight.sum()).backward()
        weight.grad = torch.full((1,), gradient)
        scaler.unscale_(optimizer)
        norm = torch.tensor(gradient)
        guard.watch(parts, StepResult(number, torch.tensor(0.5), None, norm, ("a.png",), is_scaled=True))
        scaler.step(optimizer)
        scaler.update()
        guard.check()

    step(1, float("inf"))
    step(2, float("nan"))
    assert scaler.get_scale() == 1
    step(3, 1.0)
    assert weight.item() != 1
    learned = weight.item()
    with pytest.raises(
        NonFiniteLossError, match="gradient became NaN or infinite in step 4 after others that fp16 skipped"
    ):
        step(4, float("nan"))
    assert weight.item() == learned


@pytest.mark.parametrize(("norms", "mean"), [((2.0, float("inf"), 4.0), 3.0), ((float("inf"), float("nan")), None)])
def test_steps_whose_scaled_gradients_overflowed_are_reported_like_others(
    tmp_path: Path, norms: tuple[float, ...], mean: float | None
) -> None:
    writer = EventWriter(tmp_path / "events.jsonl")
    parts: Any = SimpleNamespace(
        context=SimpleNamespace(emit=writer),
        groups={},
        optimizer=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{}])),
        device=torch.device("cpu"),
        ranks=Ranks(),
        total_steps=len(norms),
        epoch_at=lambda step: float(step),
    )
    reporter = Reporter(parts, FiniteGuard(deferred=False), first_step=-100)
    reporter._last_time = float("inf")
    for step, norm in enumerate(norms, 1):
        each = StepResult(step, torch.tensor(0.5), None, torch.tensor(norm), (), is_scaled=True)
        reporter.add(each, 0.1, TrainState(step=step))
    writer.close()
    (told,) = read_events(tmp_path / "events.jsonl")
    assert isinstance(told, StepDone)
    assert (told.step, told.loss, told.grad_norm) == (len(norms), 0.5, mean)
