"""The fused backward pass gives what the plain order does, and refuses what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings
from trainer.config.loading import build_config
from trainer.errors import ConfigError
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.training.fused import FusedBackward
from trainer.training.setup import set_up
from trainer.training.state import TrainParts
from trainer.training.step import FiniteGuard, StepResult, train_step


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    make_tiny_model(folder / "model")
    make_pictures(folder / "pictures", 2)
    return folder


def trained(folder: Path, changes: dict[str, Any], *, fused: bool) -> tuple[TrainParts, list[StepResult], list[int]]:
    """A run after two steps, their results, and how many gradients were there at each update."""
    size = {"data": {"resolution": 32}, "training": {"max_grad_norm": 0.0, "fused_backward": fused}}
    settings = tiny_settings(folder / "model", folder / "pictures", size, changes)
    run = new_run(DataFolder(folder / "data"), settings)
    parts = set_up(JobContext(run, lambda event: None), build_config(settings), run.data_folder())
    optimizer, held = parts.optimizer.optimizer, list[int]()
    optimizer.register_step_pre_hook(lambda *_: held.append(sum(weight.grad is not None for weight in parts.trainable)))
    guard = FiniteGuard(deferred=False)
    return parts, [train_step(parts, step, guard) for step in (1, 2)], held


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "adamw"}, "adapter": {"text_encoder": {"rank": 2}}},
        {"optimizer": {"name": "adafactor"}, "adapter": {"method": "loha"}, "model": {"precision": "bf16"}},
        {"optimizer": {"name": "lion"}, "training": {"gradient_checkpointing": True}},
        {
            "optimizer": {"name": "came"},
        },
    ],
    ids=lambda changes: changes["optimizer"]["name"],
)
def test_it_gives_the_same_weights_and_holds_one_gradient_at_a_time(folder: Path, changes: dict[str, Any]) -> None:
    plain, expected, _ = trained(folder, changes, fused=False)
    fused, found, held = trained(folder, changes, fused=True)
    assert set(held) == {1}
    assert len(held) == 2 * len(fused.trainable)
    for (name, ours), theirs in zip(
        fused.adapter.state_dict().items(), plain.adapter.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.loss, theirs.loss)
        torch.testing.assert_close(ours.grad_norm, theirs.grad_norm)
    ours, theirs = fused.optimizer.state_dict(), plain.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()


def test_a_broken_gradient_is_not_applied_and_is_seen() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    fused = FusedBackward(torch.optim.SGD([first, second], lr=1.0), deferred=False)
    ((first * float("inf")).sum() + second.sum()).backward()
    assert torch.equal(first.detach(), torch.ones(2))
    assert first.grad is None
    assert not torch.isfinite(fused.finish())
    (first.sum() + 2 * second.sum()).backward()
    assert torch.equal(first.detach(), torch.zeros(2))
    assert fused.finish().item() == pytest.approx((2 * 1 + 2 * 4) ** 0.5)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("training.max_grad_norm", {"training": {"max_grad_norm": 1.0}}),
        ("training.gradient_accumulation", {"training": {"gradient_accumulation": 2}}),
        ("data.prior.class_prompt", {"data": {"prior": {"class_prompt": "a robot"}}}),
        ("adapter.method", {"adapter": {"method": "adalora"}}),
        ("optimizer.name", {"optimizer": {"name": "prodigy"}}),
        ("optimizer.name", {"optimizer": {"name": "schedule_free_adamw"}, "schedule": {"kind": "constant"}}),
        ("model.precision", {"model": {"precision": "fp16"}}),
    ],
)
def test_what_needs_all_gradients_is_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    size = {"training": {"max_grad_norm": 0.0, "fused_backward": True}}
    with pytest.raises(ConfigError) as caught:
        build_config(tiny_settings(Path("model"), Path("pictures"), size, changes))
    assert [finding.where for finding in caught.value.findings] == [field]
