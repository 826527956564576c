"""The optimizer against the paper's update, and schedules at the steps where they turn."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from trainer.config import optimizer as optimizer_settings
from trainer.config.loading import build_config, load_preset, nest
from trainer.config.optimizer import OPTIMIZERS, OptimizerConfig, OptimizerName, ScheduleConfig
from trainer.errors import ConfigError
from trainer.events import Event
from trainer.objects import load_object
from trainer.optimizers.adamw import build
from trainer.optimizers.average import WeightAverage
from trainer.optimizers.schedule import multiplier
from trainer.training import preflight
from trainer.training.averages import weights_in_use
from trainer.training.report import found_rate


def test_two_steps_of_adamw_are_the_papers() -> None:
    config = OptimizerConfig(unet_learning_rate=0.1, weight_decay=0.05, beta1=0.8, beta2=0.9, epsilon=1e-6)
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build(config, {"unet": [weight]})
    expected, mean, square = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(([0.5, -1.0], [0.1, 2.0]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        for index, value in enumerate(gradient):
            mean[index] = 0.8 * mean[index] + 0.2 * value
            square[index] = 0.9 * square[index] + 0.1 * value**2
            update = (mean[index] / (1 - 0.8**step)) / (math.sqrt(square[index] / (1 - 0.9**step)) + 1e-6)
            expected[index] = expected[index] * (1 - 0.1 * 0.05) - 0.1 * update
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_each_part_has_its_own_rate() -> None:
    config = OptimizerConfig(unet_learning_rate=1e-3, text_encoder_learning_rate=1e-5)
    optimizer = build(config, {"unet": [nn.Parameter(torch.ones(1))], "text_encoder": [nn.Parameter(torch.ones(1))]})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"unet": 1e-3, "text_encoder": 1e-5}


AVAILABLE = [name for name, facts in OPTIMIZERS.items() if not facts.requires[0] or find_spec(facts.requires[0])]


def make(name: str, weights: dict[str, list[nn.Parameter]], **settings: Any) -> torch.optim.Optimizer:
    config = OptimizerConfig.model_validate({"name": name, **settings})
    return load_object(config.implementation)(config, weights)


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_rate_of_zero_leaves_the_weights_to_the_last_bit(name: str) -> None:
    left, moved = nn.Parameter(torch.randn(10, 10)), nn.Parameter(torch.randn(10, 10))
    before = left.detach().clone(), moved.detach().clone()
    weights = {"unet": [moved], "text_encoder": [left]}
    optimizer = make(name, weights, unet_learning_rate=1e-3, text_encoder_learning_rate=0.0, weight_decay=0.5)
    for _ in range(3):
        left.grad, moved.grad = torch.randn(10, 10), torch.randn(10, 10)
        optimizer.step()
    assert torch.equal(left.detach(), before[0])
    assert not torch.equal(moved.detach(), before[1])


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name: str) -> None:
    goal = torch.linspace(-1, 1, 64).reshape(8, 8)
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = make(name, {"unet": [weight]}, unet_learning_rate=0.02, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert (weight - goal).abs().max() < 0.1


def test_lion_is_the_papers() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make(
        "lion", {"unet": [weight]}, unet_learning_rate=0.1, weight_decay=0.5, lion={"beta1": 0.7, "beta2": 0.6}
    )
    expected, mean = [1.0, -2.0], [0.0, 0.0]
    for gradient in ([0.5, -1.0], [-1.0, 2.0], [0.4, -0.1]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        for index, value in enumerate(gradient):
            sign = math.copysign(1, 0.7 * mean[index] + 0.3 * value)
            expected[index] -= 0.1 * (sign + 0.5 * expected[index])
            mean[index] = 0.6 * mean[index] + 0.4 * value
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_adafactor_is_the_papers_with_the_rate_of_the_settings() -> None:
    """Shazeer & Stern 2018, algorithm 4, with clipping (section 6) and a memory that grows (section 7.2)."""
    start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, expected = nn.Parameter(start.float()), start.clone()
    optimizer = make("adafactor", {"unet": [weight]}, unet_learning_rate=0.1, weight_decay=0.0)
    rows, columns = torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.float()
        optimizer.step()
        memory = 1 - step**-0.8
        rows = memory * rows + (1 - memory) * (gradient**2 + 1e-30).mean(dim=1)
        columns = memory * columns + (1 - memory) * (gradient**2 + 1e-30).mean(dim=0)
        update = gradient / torch.sqrt(torch.outer(rows, columns) / rows.mean())
        expected -= 0.1 * update / max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(weight.detach(), expected.float(), rtol=1e-4, atol=1e-5)


def test_came_is_the_papers() -> None:
    """Luo et al. 2023, algorithm 2."""
    start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, expected = nn.Parameter(start.float()), start.clone()
    optimizer = make("came", {"unet": [weight]}, unet_learning_rate=0.1, weight_decay=0.0)
    square, unrest, mean = torch.zeros(4, 3).double(), torch.zeros(4, 3).double(), torch.zeros(4, 3).double()

    def factored(full: torch.Tensor) -> torch.Tensor:
        return torch.outer(full.mean(dim=1), full.mean(dim=0)) / full.mean()

    for step in range(1, 4):
        gradient = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.float()
        optimizer.step()
        square = 0.999 * square + 0.001 * (gradient**2 + 1e-30)
        update = gradient / factored(square).sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()))
        mean = 0.9 * mean + 0.1 * update
        unrest = 0.9999 * unrest + 0.0001 * ((update - mean) ** 2 + 1e-16)
        expected -= 0.1 * mean / factored(unrest).sqrt()
    torch.testing.assert_close(weight.detach(), expected.float(), rtol=1e-3, atol=1e-3)


def test_prodigy_finds_a_rate_and_shares_it() -> None:
    """Mishchenko & Defazio 2023, algorithm 4: with one weight and no memory the estimate can be written down."""
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = make("prodigy", {"unet": [weight]}, weight_decay=0.0)
    assert found_rate(optimizer) == 1e-6
    rates = []
    for _ in range(200):
        optimizer.zero_grad()
        (weight**2 / 2).sum().backward()
        optimizer.step()
        rates.append(found_rate(optimizer))
    assert rates == sorted(rates)
    # The distance to the solution is 3; the estimate comes near it from below.
    assert 0.1 < rates[-1] <= 3.0
    assert abs(weight.item()) < 0.5
    assert found_rate(make("adamw", {"unet": [weight]})) == 1.0


def test_d_adaptation_is_the_papers_with_one_rate_for_all_groups() -> None:
    """Defazio & Mishchenko 2023, algorithm 5 (Adam with D-Adaptation, version 3 of the estimate), without bias correction."""
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([0.5]))]
    own = {"initial": 1e-3, "growth_rate": 1.5, "use_bias_correction": False}
    parts = {"text_encoder": weights[:1], "unet": weights[1:]}
    optimizer = make("dadapt_adam", parts, weight_decay=0.1, dadapt=own)
    x, mean, square, s = [1.0, -2.0, 0.5], [0.0] * 3, [0.0] * 3, [0.0] * 3
    d, weighted, root = 1e-3, 0.0, math.sqrt(0.999)
    for gradient in ([0.5, -1.0, 2.0], [0.1, -2.0, 1.0], [0.4, -0.3, 0.7], [0.2, -0.1, 0.6]):
        weights[0].grad, weights[1].grad = torch.tensor(gradient[:2]), torch.tensor(gradient[2:])
        optimizer.step()
        numerator = 0.0
        used = d
        for index, value in enumerate(gradient):
            numerator += used * value * s[index] / (math.sqrt(square[index]) + 1e-8)
            mean[index] = 0.9 * mean[index] + 0.1 * used * value
            square[index] = 0.999 * square[index] + 0.001 * value**2
            s[index] = root * s[index] + (1 - root) * used * value
        weighted = root * weighted + (1 - root) * numerator
        d = max(d, min(weighted / ((1 - root) * sum(map(abs, s))), d * 1.5))
        for index in range(3):
            x[index] -= 0.1 * used * x[index] + mean[index] / (math.sqrt(square[index]) + 1e-8)
        assert found_rate(optimizer) == pytest.approx(d, rel=1e-4)
    assert d > 1e-3
    torch.testing.assert_close(
        torch.cat([weight.detach() for weight in weights]), torch.tensor(x), rtol=1e-4, atol=1e-6
    )


def test_d_adaptation_keeps_its_estimate_when_a_resting_group_joins() -> None:
    resting, moving = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([3.0]))
    own = {"initial": 1e-3, "growth_rate": 1.5}
    optimizer = make("dadapt_adam", {"unet": [resting], "text_encoder": [moving]}, weight_decay=0.0, dadapt=own)
    groups = {group["name"]: group for group in optimizer.param_groups}
    groups["unet"]["lr"] = 0.0
    for _ in range(20):
        resting.grad, moving.grad = torch.tensor([1.0]), torch.ones(1)
        optimizer.step()
    found = found_rate(optimizer)
    assert resting.item() == 1.0
    assert found > 10e-3
    groups["unet"]["lr"] = 1.0
    resting.grad, moving.grad = torch.tensor([1.0]), torch.ones(1)
    optimizer.step()
    assert found_rate(optimizer) >= found
    assert {group["d"] for group in optimizer.param_groups} == {found_rate(optimizer)}
    assert resting.item() < 1.0 - 0.01 * found


def test_schedule_free_uses_another_weight_than_it_trains() -> None:
    """Defazio et al. 2024, equations 3 to 5 with Adam's scaling: x is the average of z, y lies between them."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = make("schedule_free_adamw", {"unet": [weight]}, unet_learning_rate=0.1, weight_decay=0.0)
    z = x = y = 1.0
    square = 0.0
    for step, gradient in enumerate((0.5, -1.0, 2.0, 0.3), start=1):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        square = 0.999 * square + 0.001 * gradient**2
        z -= 0.1 * gradient / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        x = (1 - 1 / step) * x + z / step
        y = 0.1 * z + 0.9 * x
    assert weight.item() == pytest.approx(y, rel=1e-4)
    optimizer.eval()  # type: ignore[attr-defined]
    assert weight.item() == pytest.approx(x, rel=1e-4)


def parts_of(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], average: WeightAverage | None) -> Any:
    return SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer), trainable=weights, average=average)


@pytest.mark.parametrize("name", ["adamw", "schedule_free_adamw"])
@pytest.mark.parametrize("has_average", [False, True])
def test_looking_at_the_weights_in_use_leaves_the_training_to_the_last_bit(name: str, has_average: bool) -> None:
    ends = []
    for looks in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = make(name, {"unet": [weight]}, unet_learning_rate=0.01)
        average = WeightAverage([weight], 0.9) if has_average else None
        parts = parts_of(optimizer, [weight], average)
        for seed in range(8):
            weight.grad = torch.randn(50, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
            if average is not None:
                average.update()
            if looks:
                trained = weight.detach().clone()
                with weights_in_use(parts):
                    used = weight.detach().clone()
                assert torch.equal(weight.detach(), trained)
                if seed > 2:
                    assert torch.equal(used, trained) == (name == "adamw" and not has_average)
        ends.append(weight.detach().clone())
    assert torch.equal(*ends)


def test_an_error_while_looking_puts_the_trained_weights_back() -> None:
    weight = nn.Parameter(torch.ones(3))
    average = WeightAverage([weight], 0.9)
    with torch.no_grad():
        weight.fill_(2.0)
    parts = parts_of(make("adamw", {"unet": [weight]}), [weight], average)

    def look_and_fail() -> None:
        with weights_in_use(parts):
            assert weight.tolist() == [1.0] * 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert weight.tolist() == [2.0] * 3


def test_the_average_is_the_formula() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average, expected = WeightAverage([weight], 0.5), 0.0
    for step in range(1, 30):
        with torch.no_grad():
            weight.fill_(math.sin(step))
        average.update()
        decay = min(0.5, step / (9 + step)) if step > 1 else 0.0
        expected = decay * expected + (1 - decay) * math.sin(step)
        assert average.state_dict()["0"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"optimizer.name": "lion", "optimizer.beta2": 0.9}, "optimizer.beta2"),
        ({"optimizer.name": "adafactor", "optimizer.epsilon": 1e-6}, "optimizer.epsilon"),
        ({"optimizer.lion.beta2": 0.9}, "optimizer.lion.beta2"),
        ({"optimizer.name": "came", "optimizer.prodigy.d_coef": 2.0}, "optimizer.prodigy.d_coef"),
        ({"optimizer.name": "schedule_free_adamw"}, "schedule.kind"),
        (
            {"optimizer.name": "schedule_free_adamw", "schedule.kind": "constant", "training.ema_decay": 0.9},
            "training.ema_decay",
        ),
        ({"adapter.method": "adalora", "training.ema_decay": 0.9}, "training.ema_decay"),
        (
            {"adapter.method": "adalora", "optimizer.name": "schedule_free_adamw", "schedule.kind": "constant"},
            "optimizer.name",
        ),
        ({"adapter.method": "loraplus", "optimizer.name": "prodigy"}, "optimizer.name"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_at_their_field(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(nest(settings))
    assert [finding.where for finding in caught.value.findings] == [where]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_word_changes_the_optimizer(name: str) -> None:
    kind = "constant" if OPTIMIZERS[name].averages else "cosine"
    config = build_config(load_preset("sd15-character"), {"optimizer": {"name": name}, "schedule": {"kind": kind}})
    assert config.optimizer.name == name
    assert callable(load_object(config.optimizer.implementation))
    assert set(OPTIMIZERS) == set(get_args(OptimizerName))


def checked(events: list[Event], settings: dict[str, Any]) -> None:
    context: Any = SimpleNamespace(emit=events.append)
    preflight.check_optimizer(context, build_config(nest(settings)), torch.device("cpu"))


def test_an_optimizer_that_is_not_installed_is_refused_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_settings, "find_spec", lambda name: None)
    checked([], {"optimizer.name": "adafactor"})
    with pytest.raises(ConfigError, match="bitsandbytes") as caught:
        checked([], {"optimizer.name": "adamw_8bit"})
    assert caught.value.where == "optimizer.name"
    assert "--extra quant" in (caught.value.fix or "")


def test_an_optimizer_that_cannot_be_imported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_settings, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="cannot be used"):
        checked([], {"optimizer.name": "paged_adamw_8bit"})


def test_what_may_surprise_of_an_optimizer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_settings, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    said: dict[str, list[Event]] = {"adamw": [], "adamw_8bit": [], "prodigy": []}
    for name, events in said.items():
        checked(events, {"optimizer.name": name, "adapter.text_encoder.rank": 4})
    assert [len(events) for events in said.values()] == [0, 1, 1]
    alone: list[Event] = []
    checked(alone, {"optimizer.name": "prodigy"})
    assert alone == []


def values(kind: str, warmup_share: float, total: int, **options: Any) -> list[float]:
    config = ScheduleConfig.model_validate({"kind": kind, "warmup_share": warmup_share, **options})
    return [multiplier(config, step, total) for step in range(1, total + 1)]


def test_warm_up_rises_in_a_line_to_one() -> None:
    assert values("constant", 0.4, 10) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_falls_to_what_would_be_zero_after_the_last_step() -> None:
    assert values("linear", 0.0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert values("linear", 0.5, 4) == [0.5, 1.0, 1.0, 0.5]


def test_cosine_is_half_in_the_middle() -> None:
    found = values("cosine", 0.0, 100)
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[25] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert 0 < found[-1] < 0.001
    assert found == sorted(found, reverse=True)


def test_polynomial_is_a_power_of_the_line() -> None:
    line = values("linear", 0.2, 10)
    assert values("polynomial", 0.2, 10, power=1.0) == line
    squared = values("polynomial", 0.2, 10, power=2.0)
    assert squared[:3] == line[:3] == [0.5, 1.0, 1.0]
    assert squared[3:] == pytest.approx([value**2 for value in line[3:]])


def test_rex_is_the_papers() -> None:
    found = values("rex", 0.0, 8)
    assert found == pytest.approx([(1 - t / 8) / (1 / 2 + 1 / 2 * (1 - t / 8)) for t in range(8)])
    assert found[4] == pytest.approx(2 / 3)


def test_restarts_are_that_many_equal_cosines() -> None:
    found = values("cosine_with_restarts", 0.0, 30, num_cycles=3)
    assert found == pytest.approx(3 * values("cosine", 0.0, 10))
    assert values("cosine_with_restarts", 0.1, 30, num_cycles=1) == values("cosine", 0.1, 30)


@pytest.mark.parametrize("name", ["cosine_with_restarts", "polynomial"])
def test_after_the_warm_up_schedules_are_those_of_diffusers(name: str) -> None:
    """Theirs begins the warm-up at a rate of zero; from its end on both are the same."""
    weight = nn.Parameter(torch.ones(1))
    plain = torch.optim.SGD([weight], lr=1.0)
    theirs = get_scheduler(name, plain, num_warmup_steps=4, num_training_steps=24, num_cycles=2, power=1.5)
    found = values(name, 4 / 24, 24, num_cycles=2, power=1.5)
    for step, value in enumerate(found[4:], start=4):
        assert theirs.lr_lambdas[0](step) == pytest.approx(value, abs=1e-6), step


@pytest.mark.parametrize("kind", get_args(ScheduleConfig.model_fields["kind"].annotation))
@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_no_step_is_wasted_or_above_full_rate(kind: str, warmup_share: float, total: int) -> None:
    assert all(0 < value <= 1 for value in values(kind, warmup_share, total))
