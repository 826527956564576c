"""A run that is interrupted, moved, extended or mended ends as it should, to the last bit, whatever it trains with."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from itertools import combinations, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from app.services.jobs import History
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.config.adapter import METHODS
from trainer.config.loading import build_config, merge
from trainer.config.optimizer import OPTIMIZERS, ScheduleConfig, missing_part
from trainer.data.latents import LatentCache
from trainer.errors import ChangedRunError, ConfigError, NonFiniteLossError, ResourceError, RunError
from trainer.events import (
    Changed,
    CheckpointSaved,
    Event,
    EventReader,
    EventWriter,
    Finished,
    LoraExported,
    Remedied,
    Stage,
    Started,
    StepDone,
    Warned,
)
from trainer.jobs import launch
from trainer.lora_files.header import read_header
from trainer.paths import DataFolder
from trainer.resumption import Resumption, prepare_resumption
from trainer.runs import Run
from trainer.training.checkpoint import MARGIN_BYTES
from trainer.training.step import train_step


class Died(BaseException):
    """Stands for the death of the process."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures") / "set", 3)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return DataFolder(tmp_path_factory.mktemp("data"))


SMALL: dict[str, Any] = {
    "data": {"resolution": 32, "bucket_step": 16},
    "training": {"steps": 5, "batch_size": 1},
    "validation": {"num_pictures": 1, "num_timesteps": 1},
}


def tensors(path: str | Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def of_type(run: Run, kind: type[Event]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


def die_at(kind: type[Event], **facts: Any) -> Any:
    """Ends the process when the first event with these facts was written."""

    def look(event: Event) -> None:
        if isinstance(event, kind) and all(getattr(event, name) == value for name, value in facts.items()):
            raise Died

    return look


def die_after(count: int) -> Any:
    """Ends the process after so many events."""
    left = iter(range(count))

    def look(event: Event) -> None:
        if next(left, None) is None:
            raise Died

    return look


def interrupted(data: DataFolder, settings: dict[str, Any], at: int) -> Run:
    run = new_run(data, settings)
    with pytest.raises(Died):
        train_here(run, die_at(StepDone, step=at))
    return run


# --- every method, start, optimizer, schedule, average and prior, in pairs ---------------------------------------------

ADAPTERS: list[dict[str, Any]] = [{"method": method} for method in METHODS]
ADAPTERS += [{"method": "lora", "init": init} for init in ("orthogonal", "pissa", "olora")]
EXTRAS: list[dict[str, Any]] = [
    {"training": {"ema_decay": 0.8}},
    {"data": {"prior": {"class_prompt": "a blue tree", "num_class_images": 1}}},
    {"training": {"gradient_accumulation": 2}},
    {"data": {"prior": {"class_prompt": "a blue tree", "source": "base_prediction"}}},
    {"adapter": {"text_encoder": {"rank": 2, "alpha": 2.0}}, "data": {"caption_dropout": 0.3, "tag_dropout": 0.2}},
    {"model": {"scaler": True}, "training": {"ema_decay": 0.5}},
    {"training": {"gradient_checkpointing": True}, "objective": {"loss": "huber", "pyramid_noise_levels": 2}},
]
SPECIAL = {"adalora": {"adalora": {"every": 1, "start_share": 0.2, "final_share": 0.2}}}


def cases() -> list[Any]:
    """A case for each adapter, with all other choices dealt out so that as many pairs as can be are in one."""
    plain = {name: build_config({"optimizer": {"name": name}, "schedule": {"kind": "constant"}}) for name in OPTIMIZERS}
    optimizers = [name for name, config in plain.items() if not missing_part(config.optimizer)]
    schedules = get_args(ScheduleConfig.model_fields["kind"].annotation)
    choices = list(product(optimizers, schedules, range(len(EXTRAS))))
    seen: set[Any] = set()
    found: list[Any] = []
    for adapter in ADAPTERS:
        adapter = {**adapter, "unet": {"rank": 4, "alpha": 4.0}, **SPECIAL.get(adapter["method"], {})}
        for choice in sorted(choices, key=lambda choice: -_news(choice, seen)):
            settings = _settings(adapter, *choice)
            with contextlib.suppress(ConfigError):
                build_config({**settings, "model": {}})
                seen |= _facts(choice)
                start = adapter.get("init", "random")
                name = f"{adapter['method']}-{start}-{choice[0]}-{choice[1]}-{_name(EXTRAS[choice[2]])}"
                found.append(pytest.param(settings, id=name))
                break
        else:
            raise AssertionError(f"nothing goes with {adapter}")
    return found


def _settings(adapter: dict[str, Any], optimizer: str, schedule: str, extra: int) -> dict[str, Any]:
    own: dict[str, Any] = {"name": optimizer}
    if group := {"prodigy": "prodigy", "dadapt_adam": "dadapt"}.get(optimizer):
        own[group] = {"initial": 1e-3}
    return merge({"adapter": adapter, "optimizer": own, "schedule": {"kind": schedule}}, EXTRAS[extra])


def _facts(choice: tuple[Any, ...]) -> set[Any]:
    return set(enumerate(choice)) | set(combinations(enumerate(choice), 2))


def _news(choice: tuple[Any, ...], seen: set[Any]) -> int:
    """How much a choice adds: single words first, then pairs."""
    return sum(10 if isinstance(fact[0], int) else 1 for fact in _facts(choice) - seen)


def _name(extra: dict[str, Any]) -> str:
    return "+".join(sorted(key for group in extra.values() for key in group))


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes runs scale their loss as fp16 does on a GPU, with a scale that often grows and sometimes overflows."""
    from trainer.training import setup

    made = setup._accelerate

    def with_scaler(*arguments: Any) -> Any:
        accelerator, optimizer = made(*arguments)
        # 2^125 times a gradient is infinite in float32 now and then: that update is skipped and the scale falls.
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125, growth_interval=2)
        prepared = type(optimizer)(optimizer.optimizer, device_placement=False, scaler=accelerator.scaler)
        clip = accelerator.clip_grad_norm_

        def clip_unscaled(weights: Any, max_norm: float) -> Any:
            accelerator.scaler.unscale_(prepared.optimizer)
            return clip(weights, max_norm)

        accelerator.clip_grad_norm_ = clip_unscaled
        return accelerator, prepared

    return lambda: monkeypatch.setattr(setup, "_accelerate", with_scaler)


def test_every_choice_is_in_a_case() -> None:
    settings = [case.values[0] for case in cases()]
    assert {s["adapter"]["method"] for s in settings} == set(METHODS)
    used = {s["optimizer"]["name"] for s in settings}
    assert used >= {"adamw", "schedule_free_adamw", "prodigy", "dadapt_adam", "adafactor", "lion", "came"}
    assert {s["schedule"]["kind"] for s in settings} == set(get_args(ScheduleConfig.model_fields["kind"].annotation))
    assert {_name(extra) for extra in EXTRAS} == {case.id.split("-")[-1] for case in cases()}


@pytest.mark.parametrize("settings", cases())
def test_killed_three_times_and_moved_it_ends_with_the_same_bytes(
    model: Path, pictures: Path, shared: DataFolder, settings: dict[str, Any], scaler: Any, tmp_path: Path
) -> None:
    if settings.get("model", {}).get("scaler"):
        scaler()
    own = {key: value for key, value in settings.items() if key != "model"}
    settings = tiny_settings(model, pictures, SMALL, {"validation": {"every": 3}}, own)
    expected = train_here(new_run(shared, settings))
    run = new_run(shared, settings)
    # Before there is a checkpoint; after the update of a step but before its checkpoint; while that is being written.
    for ending in (
        die_at(StepDone, step=1),
        die_at(StepDone, step=4),
        die_at(Stage, name="Saving a checkpoint"),
    ):
        with pytest.raises(Died):
            train_here(run, ending)
    moved = Run(Path(shutil.move(run.folder, tmp_path / "elsewhere")))
    result = train_here(moved)
    assert [event.resumed_from for event in of_type(moved, Started)] == [0, 0, 2, 2]
    assert tensors(result["lora"]) == tensors(expected["lora"])
    assert result["validation_loss_last"] == expected["validation_loss_last"]


def test_a_data_folder_that_was_moved_goes_on_where_it_is_now(model: Path, data: DataFolder) -> None:
    make_pictures(data.datasets / "houses", 3)
    settings = tiny_settings(model, data.datasets / "houses", SMALL)
    expected = train_here(new_run(data, settings))
    run = interrupted(data, settings, 3)
    moved = DataFolder(data.root.with_name("moved"))
    data.root.rename(moved.root)
    data.root.mkdir()  # something else may be there by now
    run = Run(moved.runs / run.id)
    config = run.config()
    config["data"]["dataset"] = str(moved.datasets / "houses")
    run.config_path.write_text(json.dumps(config))
    assert run.data_folder() == moved
    result = train_here(run)
    assert Path(result["library_path"]).is_relative_to(moved.root)
    assert tensors(result["lora"]) == tensors(moved.root / Path(expected["lora"]).relative_to(data.root))
    assert list(data.root.iterdir()) == []


# --- changes and length ------------------------------------------------------------------------------------------------


def test_accepted_changes_are_told_once_and_stay(model: Path, data: DataFolder, tmp_path: Path) -> None:
    own = make_pictures(tmp_path / "own", 3)
    run = interrupted(data, tiny_settings(model, own, SMALL), 3)
    (own / "picture-1.txt").write_text("another caption")
    config = run.config()
    config["optimizer"]["unet_learning_rate"] = 0.5
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(ChangedRunError, match="accept-changes"):
        train_here(run)
    prepare_resumption(run, Resumption(accepts_changes=True))
    run.enqueue()
    with pytest.raises(Died):  # before a checkpoint has the changes: they need not be accepted again
        train_here(run, die_at(StepDone, step=3))
    with pytest.raises(Died):
        train_here(run, die_at(StepDone, step=5))
    assert train_here(run)["steps"] == 5
    told = of_type(run, Changed)
    assert [(event.step, event.changes[0]) for event in told] == [
        (2, "optimizer.unet_learning_rate: was 0.001, is 0.5")
    ] * 2
    assert "another caption'" in told[0].changes[1]
    (own / "picture-1.txt").write_text("a third caption")
    with pytest.raises(ChangedRunError, match="third"):
        train_here(run)


def test_changes_that_do_not_fit_the_weights_are_refused_even_if_accepted(
    model: Path, pictures: Path, data: DataFolder
) -> None:
    run = interrupted(data, tiny_settings(model, pictures, SMALL), 3)
    config = merge(run.config(), {"adapter": {"unet": {"rank": 2}}})
    run.config_path.write_text(json.dumps(config))
    prepare_resumption(run, Resumption(accepts_changes=True))
    with pytest.raises(RunError, match="do not fit"):
        train_here(run)


def test_another_optimizer_and_a_new_average_may_be_accepted(model: Path, pictures: Path, data: DataFolder) -> None:
    run = interrupted(data, tiny_settings(model, pictures, SMALL), 3)
    config = merge(run.config(), {"optimizer": {"name": "lion"}, "training": {"ema_decay": 0.9}})
    config["optimizer"] = {"name": "lion", "unet_learning_rate": 1e-4}
    run.config_path.write_text(json.dumps(config))
    prepare_resumption(run, Resumption(accepts_changes=True))
    assert train_here(run)["steps"] == 5
    assert any("'adamw', is 'lion'" in change for change in of_type(run, Changed)[0].changes)


def test_a_finished_run_is_extended_and_keeps_its_first_file(model: Path, pictures: Path, data: DataFolder) -> None:
    constant = {"schedule": {"kind": "constant", "warmup_share": 0.0}, "training": {"steps": 4}}
    # The finished file is that of step 4, too: it is not written twice.
    settings = tiny_settings(model, pictures, SMALL, constant, {"save": {"export_every": 4}})
    run = new_run(data, settings)
    first = train_here(run)
    content = tensors(first["lora"])
    writer = EventWriter(run.events_path)
    writer(Finished(result=first))
    writer.close()
    with pytest.raises(RunError, match="4 steps of this run are done"):
        prepare_resumption(run, Resumption(steps=4))
    prepare_resumption(run, Resumption(steps=7))
    with pytest.raises(Died):
        train_here(run, die_at(StepDone, step=6))
    second = train_here(run)
    whole = train_here(new_run(data, merge(settings, {"training": {"steps": 7}})))
    assert second["steps"] == 7
    assert tensors(second["lora"]) == tensors(whole["lora"])
    assert tensors(first["lora"]) == content
    assert [Path(event.path).name for event in of_type(run, LoraExported)] == [
        "test.safetensors",
        "test-step000007.safetensors",
    ]
    assert read_header(Path(second["lora"]))[0]["ss_steps"] == "7"
    assert of_type(run, Changed)[0].changes == ["training.steps: was 4, is 7"]
    assert [event.total_steps for event in of_type(run, StepDone)][-1] == 7
    again = train_here(run)
    assert again["lora"] == second["lora"]


def test_a_run_that_was_stopped_can_be_ended_where_it_is(model: Path, pictures: Path, data: DataFolder) -> None:
    run = interrupted(data, tiny_settings(model, pictures, SMALL), 3)
    prepare_resumption(run, Resumption(steps=2))
    result = train_here(run)
    assert result["steps"] == 2
    assert Path(result["lora"]).name == "test.safetensors"


# --- NaN and what is done about it -------------------------------------------------------------------------------------


@pytest.fixture
def broken_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture's latents are NaN."""
    get = LatentCache.get

    def broken(cache: LatentCache, example: Any, *variant: Any) -> Any:
        mean, std = get(cache, example, *variant)
        return (mean * float("nan"), std) if example.name == "picture-1.png" else (mean, std)

    monkeypatch.setattr(LatentCache, "get", broken)


NAN: dict[str, Any] = {"training": {"steps": 8, "ema_decay": 0.7}, "validation": {"num_pictures": 1}}


@pytest.mark.usefixtures("broken_picture")
def test_a_picture_that_cannot_be_learned_is_left_out_and_named(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(model, pictures, SMALL, NAN, {"training": {"on_nan": "skip_batch"}})
    run = new_run(data, settings)
    expected = train_here(run)
    remedies = of_type(run, Remedied)
    assert remedies
    assert {name for event in remedies for name in event.pictures} == {"picture-1.png"}
    left_out = {event.step for event in remedies}
    assert {event.step for event in of_type(run, StepDone)} == set(range(1, 9)) - left_out
    assert all(torch.isfinite(weight).all() for weight in load_file(expected["lora"]).values())
    # Killed at the most awkward points, and again.
    killed = new_run(data, settings)
    with pytest.raises(Died):
        train_here(killed, die_at(Remedied))
    for patience in (8, 13, 18):
        with contextlib.suppress(Died):
            train_here(killed, die_after(patience))
    assert tensors(train_here(killed)["lora"]) == tensors(expected["lora"])
    # Without a remedy it stops, says so, and takes the one that it is resumed with: to the same end.
    plain = new_run(data, merge(settings, {"training": {"on_nan": "stop"}}))
    with pytest.raises(NonFiniteLossError, match="--on-nan skip_batch") as caught:
        train_here(plain)
    assert [finding.where for finding in caught.value.findings] == ["picture-1.png"]
    prepare_resumption(plain, Resumption(on_nan="skip_batch"))
    assert tensors(train_here(plain)["lora"]) == tensors(expected["lora"])
    # Not for ever.
    few = new_run(data, merge(settings, {"training": {"on_nan_tries": 1, "steps": 40}}))
    with pytest.raises(NonFiniteLossError, match="Stopped after 1 remed"):
        train_here(few)


def test_the_other_remedy_that_is_offered_has_tries_of_its_own(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(parts: Any, step: int, guard: Any, rate_factor: float = 1.0) -> Any:
        if step >= 5 and rate_factor > 0.6:
            with torch.no_grad():
                parts.trainable[0].fill_(float("inf"))
        return train_step(parts, step, guard, rate_factor)

    monkeypatch.setattr("trainer.training.loop.train_step", breaking)
    own = {"training": {"steps": 8, "on_nan": "skip_batch", "on_nan_tries": 2}, "save": {"checkpoint_every": 1}}
    run = new_run(data, tiny_settings(model, pictures, SMALL, own))
    with pytest.raises(NonFiniteLossError, match=f"inkwash resume {run.id} --on-nan lower_rate"):
        train_here(run)
    prepare_resumption(run, Resumption(on_nan="lower_rate"))
    train_here(run)
    assert [event.action for event in of_type(run, Remedied)] == ["skip_batch", "skip_batch", "lower_rate"]


@pytest.fixture
def too_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of step 5 is infinite with learning rates above 0.6 of those that are set."""

    def breaking(parts: Any, step: int, guard: Any, rate_factor: float = 1.0) -> Any:
        if step == 5 and rate_factor > 0.6:
            with torch.no_grad():
                parts.trainable[0].fill_(float("inf"))
        return train_step(parts, step, guard, rate_factor)

    monkeypatch.setattr("trainer.training.loop.train_step", breaking)


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("prodigy", "schedule_free_adamw"))]
)
@pytest.mark.usefixtures("too_fast")
def test_going_back_with_lower_rates_is_what_a_resume_with_lower_rates_would_be(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    own: dict[str, Any] = {"optimizer": {"name": optimizer}, "schedule": {"kind": "constant"}}
    if optimizer == "prodigy":
        own["optimizer"]["prodigy"] = {"initial": 1e-3, "factor": 0.5}
    settings = tiny_settings(model, pictures, SMALL, {"training": {"steps": 6}}, own)
    run = new_run(data, merge(settings, {"training": {"on_nan": "lower_rate"}}))
    result = train_here(run)
    (remedy,) = of_type(run, Remedied)
    assert (remedy.step, remedy.back_to, remedy.rate_factor) == (5, 4, 0.5)
    assert [event.step for event in of_type(run, StepDone)] == [1, 2, 3, 4, 5, 6]
    # By hand: killed after its checkpoint of step 4, and resumed with half the rates.
    other = interrupted(data, settings, 4)
    if not (other.checkpoints / "step-00000004").exists():
        with pytest.raises(Died):
            train_here(other, die_at(CheckpointSaved, step=4))
    config = other.config()
    rate = "factor" if optimizer == "prodigy" else "unet_learning_rate"
    place = config["optimizer"]["prodigy"] if optimizer == "prodigy" else config["optimizer"]
    place[rate] *= 0.5
    other.config_path.write_text(json.dumps(config))
    prepare_resumption(other, Resumption(accepts_changes=True))
    monkeypatch.setattr("trainer.training.loop.train_step", train_step)
    by_hand = train_here(other)
    assert tensors(result["lora"]) == tensors(by_hand["lora"])


def test_a_fault_that_comes_again_goes_back_further_and_ends_the_same_after_deaths(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(parts: Any, step: int, guard: Any, rate_factor: float = 1.0) -> Any:
        if step == 5 and rate_factor > 0.2:
            with torch.no_grad():
                parts.trainable[0].fill_(float("nan"))
        return train_step(parts, step, guard, rate_factor)

    monkeypatch.setattr("trainer.training.loop.train_step", breaking)
    settings = tiny_settings(model, pictures, SMALL, {"training": {"steps": 6, "on_nan": "lower_rate"}})
    run = new_run(data, settings)
    expected = train_here(run)
    assert [(event.back_to, event.rate_factor) for event in of_type(run, Remedied)] == [(4, 0.5), (2, 0.25), (4, 0.125)]
    killed = new_run(data, settings)
    for ending in (
        die_at(Remedied, back_to=4),
        die_at(Remedied, rate_factor=0.125),
        die_at(CheckpointSaved, step=6),
    ):
        with pytest.raises(Died):
            train_here(killed, ending)
    assert tensors(train_here(killed)["lora"]) == tensors(expected["lora"])


@pytest.mark.usefixtures("too_fast")
def test_files_of_weights_that_were_given_up_say_so_and_are_made_anew(
    model: Path, pictures: Path, data: DataFolder
) -> None:
    changes = {
        "training": {"steps": 6, "on_nan": "lower_rate"},
        "save": {"checkpoint_every": 3, "export_every": 2},
        "preview": {"every": 4, "prompts": ["a red house"]},
    }
    run = new_run(data, tiny_settings(model, pictures, SMALL, changes))
    train_here(run)
    assert [event.back_to for event in of_type(run, Remedied)] == [3]
    names = sorted(path.name for path in run.lora.glob("*-step*"))
    assert [name.partition("-step")[2] for name in names] == [
        "000002.safetensors",
        "000004 given up.safetensors",
        "000004.safetensors",
    ]
    old, new = (run.lora / name for name in names[1:])
    assert tensors(old) != tensors(new)
    exported = {Path(event.library_path) for event in of_type(run, LoraExported) if event.step == 4}
    assert [path.read_bytes() for path in exported] == [new.read_bytes()]
    (theirs,) = data.loras.glob(f"{new.stem} given up*.safetensors")
    assert theirs.read_bytes() == old.read_bytes()
    samples = sorted(path.name for path in run.samples.glob("step-000004-*"))
    assert samples == ["step-000004-0 given up.png", "step-000004-0.png"]
    # A page that follows the run shows what was made since.
    history = History(run, EventReader(run.events_path))
    history.update()
    assert sorted(history.samples) == [(0, 0), (4, 0), (6, 0)]


# --- the disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_is_announced_and_the_run_goes_on_after_it(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(model, pictures, SMALL)
    expected = train_here(new_run(data, settings))
    run = new_run(data, settings)
    free = {"bytes": 10**12}

    def fill(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            free["bytes"] = MARGIN_BYTES

    monkeypatch.setattr("trainer.files.free_bytes", lambda folder: free["bytes"])
    monkeypatch.setattr("trainer.training.resume.free_bytes", lambda folder: free["bytes"])
    with pytest.raises(ResourceError, match="after step 4") as caught:
        train_here(run, fill)
    assert "step 2" in str(caught.value)
    assert [event.step for event in of_type(run, CheckpointSaved)] == [2]
    assert any("nearly full" in event.message and "step 4" in event.message for event in of_type(run, Warned))
    monkeypatch.undo()
    assert tensors(train_here(run)["lora"]) == tensors(expected["lora"])


def test_files_along_the_way_that_will_not_fit_are_announced_and_the_run_ends_well(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(model, pictures, SMALL, {"training": {"steps": 4}, "save": {"export_every": 1}})
    monkeypatch.setattr("trainer.training.preflight.free_bytes", lambda folder: 64 * 2**20 + 100)
    run = new_run(data, settings)
    assert train_here(run)["steps"] == 4
    assert [event.message.partition(" to be")[0] for event in of_type(run, Warned)] == ["The 3 LoRA files"]


@pytest.mark.parametrize(
    "place", ["vae", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "picture"))]
)
def test_samples_that_fail_anywhere_cost_nothing(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    settings = tiny_settings(
        model, pictures, SMALL, {"training": {"steps": 3, "ema_decay": 0.7}, "adapter": {"dropout": 0.3}}
    )
    expected = train_here(new_run(data, settings))

    def fail(*arguments: Any, **options: Any) -> Any:
        torch.rand(5)
        raise OSError("the sample is broken") if place == "picture" else RuntimeError("the sample is broken")

    target = {
        "unet": "trainer.sampling.denoise.Batch._predict",
        "vae": "trainer.sampling.sampler.decode",
        "picture": "trainer.training.preview.write_atomically",
    }[place]
    monkeypatch.setattr(target, fail)
    run = new_run(data, merge(settings, {"preview": {"every": 1}}))
    result = train_here(run)
    assert sum("the sample is broken" in event.message for event in of_type(run, Warned)) == 4
    assert tensors(result["lora"]) == tensors(expected["lora"])


# --- real processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sigkill_again_and_again_at_random_moments_gives_the_same_bytes(
    model: Path, pictures: Path, data: DataFolder, seed: int
) -> None:
    draws = random.Random(seed)
    settings = tiny_settings(
        model,
        pictures,
        SMALL,
        {
            "training": {"steps": 30, "gradient_accumulation": 2, "ema_decay": 0.9},
            "adapter": {"text_encoder": {"rank": 2, "alpha": 2.0}, "dropout": 0.1},
            "optimizer": {"name": "prodigy", "prodigy": {"initial": 1e-3}},
            "data": {"prior": {"class_prompt": "a blue tree", "num_class_images": 2}},
            "save": {"checkpoint_every": 3, "export_every": 7},
            "preview": {"every": 5},
        },
    )
    expected = train_here(new_run(data, settings))
    run = new_run(data, settings)
    for _ in range(6):
        offset = len(run.events())
        run.enqueue()
        process = launch(run)
        deadline, patience = time.monotonic() + 300, draws.randint(1, 60)
        while len(run.events()) < offset + patience and process.poll() is None:
            assert time.monotonic() < deadline, run.log_tail()
            time.sleep(0.002)
        time.sleep(draws.random() * 0.05)
        process.kill()
        process.wait()
    run.enqueue()
    assert launch(run).wait(600) == 0, run.log_tail()
    assert len(of_type(run, Started)) > 1
    assert tensors(of_type(run, Finished)[-1].result["lora"]) == tensors(expected["lora"])
