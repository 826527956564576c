"""Every optimizer and objective learns on the tiny model: the validation loss falls in a few steps."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings
from trainer.config.loading import build_config, merge
from trainer.config.optimizer import OPTIMIZERS
from trainer.jobs import JobContext
from trainer.optimizers.average import WeightAverage
from trainer.paths import DataFolder
from trainer.training.averages import weights_in_use
from trainer.training.base_prediction import base_prediction, predict
from trainer.training.caches import make_batches
from trainer.training.distributed import Ranks
from trainer.training.report import Reporter
from trainer.training.setup import _accelerate, set_up
from trainer.training.state import TrainParts, TrainState
from trainer.training.step import FiniteGuard, train_step
from trainer.training.validation import validation_loss

STEPS = 12
RATES = {"lion": 2e-3, "came": 5e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainParts, dict[str, Any]]:
    """A run that is set up, and its settings."""
    folder = tmp_path_factory.mktemp("learning")
    model, pictures = make_tiny_model(folder / "model"), make_pictures(folder / "pictures", 2)
    settings = tiny_settings(
        model,
        pictures,
        {
            "data": {"resolution": 32},
            "adapter": {"unet": {"rank": 8, "alpha": 8.0, "targets": "all+conv"}},
            "schedule": {"kind": "constant", "warmup_share": 0.0},
            "training": {"steps": STEPS},
        },
    )
    run = new_run(DataFolder(folder / "data"), settings)
    return set_up(JobContext(run, lambda event: None), build_config(settings), run.data_folder()), settings


def losses(base: tuple[TrainParts, dict[str, Any]], changes: dict[str, Any]) -> tuple[float, float]:
    """The validation loss before and after some steps with changed settings, from the same start."""
    parts, settings = base
    config = build_config(merge(settings, changes))
    start = {name: weight.clone() for name, weight in parts.adapter.state_dict().items()}
    accelerator, optimizer = _accelerate(config, parts.adapter, parts.device, torch.float32)
    parts = replace(
        parts,
        config=config,
        accelerator=accelerator,
        optimizer=optimizer,
        batches=make_batches(config, parts.split.training, parts.latents, "instance", 1, Ranks()),
        average=WeightAverage(parts.trainable, config.training.ema_decay) if config.training.ema_decay else None,
    )
    guard = FiniteGuard(deferred=False)
    first = validation_loss(parts)
    for step in range(1, STEPS + 1):
        train_step(parts, step, guard)
    with weights_in_use(parts):
        last = validation_loss(parts)
    parts.adapter.load_state_dict(start)
    return first, last


def test_groups_of_weights_are_found_once_for_all_steps(
    base: tuple[TrainParts, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With ranks of each layer's own (EVA) it takes a tenth of a second for SDXL's.
    parts, settings = base
    start = {name: weight.clone() for name, weight in parts.adapter.state_dict().items()}
    accelerator, optimizer = _accelerate(build_config(settings), parts.adapter, parts.device, torch.float32)
    found, calls = parts.adapter.parameter_groups, list[int]()
    monkeypatch.setattr(parts.adapter, "parameter_groups", lambda: calls.append(len(calls)) or found())
    parts, guard = replace(parts, accelerator=accelerator, optimizer=optimizer), FiniteGuard(deferred=False)
    reporter = Reporter(parts, guard, first_step=1)
    for step in (1, 2):
        reporter.add(train_step(parts, step, guard), 0.1, TrainState(step=step))
    assert len(calls) == 1
    parts.adapter.load_state_dict(start)


# 8-bit AdamW on a CPU takes minutes; tests/unit/test_checkpoint.py sees to its arithmetic where it is installed.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not OPTIMIZERS[name].requires[0]])
def test_every_optimizer_learns(base: tuple[TrainParts, dict[str, Any]], name: str) -> None:
    rate = RATES.get(name, 2e-2)
    facts = OPTIMIZERS[name]
    own = {facts.group: {"initial": 1e-3}} if facts.finds_rate else {}
    first, last = losses(base, {"optimizer": {"name": name, "unet_learning_rate": rate, **own}})
    assert last < 0.95 * first


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the optional part quant is not installed")
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].requires[0]])
def test_every_optimizer_of_bitsandbytes_learns(base: tuple[TrainParts, dict[str, Any]], name: str) -> None:
    first, last = losses(base, {"optimizer": {"name": name, "unet_learning_rate": 2e-2}})
    assert last < 0.95 * first


@pytest.mark.parametrize(
    "objective",
    [
        {"loss": "huber", "weighting": "p2", "timestep_distribution": "mode", "input_perturbation": 0.1},
        {"loss": "smooth_l1", "weighting": "debiased", "pyramid_noise_levels": 6, "huber_schedule": "exponential"},
        {"weighting": "constant", "timestep_distribution": "logit_normal", "noise_offset": 0.1},
    ],
)
def test_every_objective_learns(base: tuple[TrainParts, dict[str, Any]], objective: dict[str, Any]) -> None:
    first, last = losses(base, {"optimizer": {"unet_learning_rate": 2e-2}, "objective": objective})
    assert last < 0.95 * first


def test_the_average_of_the_weights_is_what_is_measured(base: tuple[TrainParts, dict[str, Any]]) -> None:
    first, last = losses(base, {"optimizer": {"unet_learning_rate": 2e-2}, "training": {"ema_decay": 0.9}})
    assert last < 0.95 * first


def weights_of(parts: TrainParts) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in parts.adapter.state_dict().items()}


def test_the_base_models_prediction_is_that_of_the_model_before_training(
    base: tuple[TrainParts, dict[str, Any]],
) -> None:
    parts, _ = base
    start = weights_of(parts)
    batch = parts.batches.make(0, "test", 1)
    with torch.no_grad():
        untrained = predict(parts, batch)
    for weight in parts.adapter.state_dict().values():
        weight.add_(0.1)
    trained = weights_of(parts)
    with torch.no_grad():
        changed = predict(parts, batch)
    found = base_prediction(replace(parts, start=start), batch)
    assert torch.equal(found, untrained)
    assert not torch.allclose(changed, untrained, atol=1e-3)
    assert all(torch.equal(weight, trained[name]) for name, weight in weights_of(parts).items())
    assert parts.components.unet.training
    assert not found.requires_grad
    parts.adapter.load_state_dict(start)


def test_prior_preservation_without_pictures_keeps_what_the_class_prompt_gives(
    base: tuple[TrainParts, dict[str, Any]],
) -> None:
    """With the loss on the class prompt the trained model's answer to it moves less than without."""
    parts, settings = base
    prompt = "a blue tree"
    parts.texts.prepare([prompt], lambda done, total: None)  # type: ignore[union-attr]
    start = weights_of(parts)
    batch = parts.batches.make(0, "test", 1)
    batch = replace(batch, captions=(prompt,) * len(batch.captions))
    with torch.no_grad():
        before = predict(parts, batch)
    drifts = {}
    for weight in (0.0, 5.0):
        prior = {"class_prompt": prompt, "source": "base_prediction", "weight": weight}
        config = build_config(merge(settings, {"data": {"prior": prior}, "optimizer": {"unet_learning_rate": 1e-2}}))
        accelerator, optimizer = _accelerate(config, parts.adapter, parts.device, torch.float32)
        changed = replace(parts, config=config, accelerator=accelerator, optimizer=optimizer, start=start)
        results = [train_step(changed, step, FiniteGuard(deferred=False)) for step in range(1, 9)]
        assert all(result.prior_loss is not None for result in results)
        # In the first step the adapter changes nothing yet.
        assert float(results[0].prior_loss) == pytest.approx(0, abs=1e-9)  # type: ignore[arg-type]
        assert float(results[-1].prior_loss) > 0  # type: ignore[arg-type]
        with torch.no_grad():
            drifts[weight] = float((predict(parts, batch) - before).square().mean())
        parts.adapter.load_state_dict(start)
    assert drifts[5.0] < 0.8 * drifts[0.0]
