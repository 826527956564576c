"""The optimizer against the paper's update, and schedules at the steps where they turn."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from trainer.config.optimizer import AdamWConfig, ScheduleConfig
from trainer.optimizers.adamw import build
from trainer.optimizers.schedule import multiplier


def test_two_steps_of_adamw_are_the_papers() -> None:
    config = AdamWConfig(unet_learning_rate=0.1, weight_decay=0.05, beta1=0.8, beta2=0.9, epsilon=1e-6)
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
    config = AdamWConfig(unet_learning_rate=1e-3, text_encoder_learning_rate=1e-5)
    optimizer = build(config, {"unet": [nn.Parameter(torch.ones(1))], "text_encoder": [nn.Parameter(torch.ones(1))]})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"unet": 1e-3, "text_encoder": 1e-5}


def test_a_rate_of_zero_leaves_the_weights_to_the_last_bit() -> None:
    weight = nn.Parameter(torch.randn(1000))
    before = weight.detach().clone()
    optimizer = build(AdamWConfig(unet_learning_rate=0.0, weight_decay=0.5), {"unet": [weight]})
    weight.grad = torch.randn(1000)
    optimizer.step()
    assert torch.equal(weight.detach(), before)


def values(kind: Literal["constant", "cosine", "linear"], warmup_share: float, total: int) -> list[float]:
    config = ScheduleConfig(kind=kind, warmup_share=warmup_share)
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


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_no_step_is_wasted_or_above_full_rate(
    kind: Literal["constant", "cosine", "linear"], warmup_share: float, total: int
) -> None:
    assert all(0 < value <= 1 for value in values(kind, warmup_share, total))
