"""Training runs on a tiny random model: what is learned, what is kept, and that nothing can interrupt it for good."""

from __future__ import annotations

import errno
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.config.loading import merge
from trainer.dataset.versions import read_versions
from trainer.errors import Cancelled, NonFiniteLossError, ResourceError, RunError
from trainer.events import (
    CheckpointSaved,
    Event,
    Finished,
    LoraExported,
    Picture,
    Started,
    StepDone,
    Stopped,
    Validated,
    Warned,
)
from trainer.jobs import launch
from trainer.lora_files.header import read_header
from trainer.paths import DataFolder
from trainer.runs import Run


class Died(BaseException):
    """Stands for the death of the process."""


# What is most likely to differ after a resume: both parts trained, dropout, accumulation, flips, dropped captions, draws.
RICH: dict[str, Any] = {
    "data": {
        "caption_dropout": 0.3,
        "horizontal_flip": True,
        "shuffle_tags": True,
        "tag_dropout": 0.2,
        "wildcards": True,
    },
    "adapter": {"text_encoder": {"rank": 2, "alpha": 2.0}, "dropout": 0.1},
    "objective": {
        "noise_offset": 0.05,
        "pyramid_noise_levels": 3,
        "input_perturbation": 0.1,
        "timestep_distribution": "logit_normal",
        "loss": "huber",
    },
    "training": {"gradient_accumulation": 2},
}


def tensors(path: str | Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def of_type(run: Run, kind: type[Event]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


@pytest.fixture(scope="module")
def whole(model: Path, pictures: Path, data: DataFolder) -> tuple[Run, dict[str, Any]]:
    """A run that nothing interrupts."""
    run = new_run(data, tiny_settings(model, pictures, RICH))
    return run, train_here(run)


def test_a_run_tells_what_it_does_and_leaves_a_lora(whole: tuple[Run, dict[str, Any]], data: DataFolder) -> None:
    run, result = whole
    assert [event.step for event in of_type(run, StepDone)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in of_type(run, Validated)] == [0, 6]
    assert [event.step for event in of_type(run, CheckpointSaved)] == [2, 4, 6]
    assert [event.step for event in of_type(run, Picture)] == [0, 6]
    assert all((run.folder / event.path).is_file() for event in of_type(run, Picture))
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000004", "step-00000006"]
    assert result["steps"] == 6
    assert result["validation_loss_last"] == of_type(run, Validated)[-1].loss
    assert result["library_path"].startswith(str(data.loras))
    metadata, keys = read_header(Path(result["lora"]))
    assert {key.split("_")[1] for key in keys} == {"unet", "te"}
    assert metadata["ss_steps"] == "6"
    (version,) = read_versions(run.folder)
    assert [one.caption for one in version.pictures.values()] == [f"a red house, number {i}" for i in range(5)]
    assert json.loads(metadata["inkwash.datasets"]) == {"set": version.sha256}
    last = of_type(run, StepDone)[-1]
    assert last.eta_seconds == 0
    assert last.memory_bytes > 0
    assert set(last.learning_rates) == {"unet", "text_encoder"}


def test_the_same_settings_give_the_same_bytes(
    whole: tuple[Run, dict[str, Any]], model: Path, pictures: Path, data: DataFolder
) -> None:
    again = train_here(new_run(data, tiny_settings(model, pictures, RICH)))
    other = train_here(new_run(data, tiny_settings(model, pictures, RICH, {"training": {"seed": 43}})))
    assert tensors(again["lora"]) == tensors(whole[1]["lora"])
    assert tensors(other["lora"]) != tensors(whole[1]["lora"])


@pytest.mark.parametrize("dies_at", [1, 2, 3, 5, 6])
def test_a_run_that_died_at_a_step_ends_with_the_same_bytes(
    whole: tuple[Run, dict[str, Any]], model: Path, pictures: Path, data: DataFolder, dies_at: int
) -> None:
    run = new_run(data, tiny_settings(model, pictures, RICH))

    def die(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == dies_at:
            raise Died

    with pytest.raises(Died):
        train_here(run, die)
    result = train_here(run)
    assert of_type(run, Started)[-1].resumed_from == (dies_at - 1) // 2 * 2
    assert tensors(result["lora"]) == tensors(whole[1]["lora"])
    assert result["validation_loss_first"] == whole[1]["validation_loss_first"]
    assert result["validation_loss_last"] == whole[1]["validation_loss_last"]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"name": "prodigy", "prodigy": {"initial": 1e-3}}, "training": {"ema_decay": 0.8}},
        {"optimizer": {"name": "schedule_free_adamw"}, "schedule": {"kind": "constant"}},
    ],
)
def test_averages_and_found_rates_survive_a_death(
    model: Path, pictures: Path, data: DataFolder, changes: dict[str, Any]
) -> None:
    # Measured and exported along the way in one of the runs, which must not change what is learned.
    settings = tiny_settings(model, pictures, changes, {"training": {"steps": 4}, "data": {"resolution": 32}})
    plain = train_here(new_run(data, merge(settings, {"validation": {"every": 0}})))
    run = new_run(data, merge(settings, {"validation": {"every": 0}, "save": {"export_every": 1}}))

    def die(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise Died

    with pytest.raises(Died):
        train_here(run, die)
    result = train_here(run)
    assert of_type(run, Started)[-1].resumed_from == 2
    assert tensors(result["lora"]) == tensors(plain["lora"])
    assert result["validation_loss_last"] == plain["validation_loss_last"]
    if changes["optimizer"]["name"] == "prodigy":
        rates = [event.learning_rates["unet"] for event in of_type(run, StepDone)]
        assert rates[0] != 1.0


@pytest.mark.parametrize(
    "kill_at", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_sigkill_at_a_step_then_resume_gives_the_same_bytes(
    whole: tuple[Run, dict[str, Any]], model: Path, pictures: Path, data: DataFolder, kill_at: int
) -> None:
    run = new_run(data, tiny_settings(model, pictures, RICH))
    run.enqueue()
    process = launch(run)
    deadline = time.monotonic() + 300
    while not any(event.step >= kill_at for event in of_type(run, StepDone)):
        assert process.poll() is None, run.log_tail()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not of_type(run, Finished)
    run.enqueue()
    assert launch(run).wait(300) == 0, run.log_tail()
    finished = of_type(run, Finished)[-1].result
    assert tensors(finished["lora"]) == tensors(whole[1]["lora"])


def test_stop_keeps_the_step_and_the_run_goes_on_to_the_same_bytes(
    whole: tuple[Run, dict[str, Any]], model: Path, pictures: Path, data: DataFolder
) -> None:
    run = new_run(data, tiny_settings(model, pictures, RICH))

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            run.request("stop")

    with pytest.raises(Cancelled):
        train_here(run, stop)
    assert of_type(run, CheckpointSaved)[-1].step == 3
    assert not of_type(run, LoraExported)
    run.clear_requests()
    result = train_here(run)
    assert of_type(run, Started)[-1].resumed_from == 3
    assert tensors(result["lora"]) == tensors(whole[1]["lora"])


def test_a_finished_run_resumed_returns_at_once_and_copies_nothing_twice(
    model: Path, pictures: Path, data: DataFolder
) -> None:
    run = new_run(data, tiny_settings(model, pictures, {"training": {"steps": 2}, "save": {"name": "once"}}))
    first = train_here(run)
    preview = Path(first["library_path"]).with_suffix(".preview.png")
    preview.write_bytes(b"the user's own")
    second = train_here(run)
    assert preview.read_bytes() == b"the user's own"
    preview.rename(chosen := preview.with_name("once.png"))
    train_here(run)
    assert chosen.exists()
    assert not preview.exists()
    assert len(of_type(run, StepDone)) == 2
    assert second["steps"] == 2
    assert tensors(first["lora"]) == tensors(second["lora"])
    assert len(of_type(run, Picture)) == 2


def test_save_and_preview_are_answered_and_a_file_without_room_costs_nothing(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(
        model, pictures, {"training": {"steps": 4}, "save": {"checkpoint_every": 0, "export_every": 1}}
    )
    run = new_run(data, settings)

    def ask(event: Event) -> None:
        if isinstance(event, StepDone):
            monkeypatch.setattr("trainer.files.free_bytes", lambda folder: 0 if event.step == 2 else 10**12)
        if isinstance(event, StepDone) and event.step == 1:
            run.request("save")
            run.request("preview")

    result = train_here(run, ask)
    assert [event.step for event in of_type(run, CheckpointSaved)] == [1, 4]
    assert [Path(event.path).name for event in of_type(run, LoraExported)] == [
        "test-step000001.safetensors",
        "test-step000003.safetensors",
        "test.safetensors",
    ]
    assert [event.step for event in of_type(run, Picture)] == [0, 1, 4]
    (warning,) = [event.message for event in of_type(run, Warned) if "LoRA" in event.message]
    assert "step 2" in warning
    assert "disk space" in warning
    assert not run.has_request("save")
    assert not run.has_request("preview")
    plain = train_here(new_run(data, tiny_settings(model, pictures, {"training": {"steps": 4}})))
    assert tensors(result["lora"]) == tensors(plain["lora"])


def interrupted(data: DataFolder, settings: dict[str, Any], at: int) -> Run:
    run = new_run(data, settings)

    def die(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == at:
            raise Died

    with pytest.raises(Died):
        train_here(run, die)
    return run


def test_changed_pictures_captions_and_settings_are_refused_by_name(
    model: Path, data: DataFolder, tmp_path: Path
) -> None:
    own = make_pictures(tmp_path / "own", 4)
    run = interrupted(data, tiny_settings(model, own), 3)
    (own / "picture-1.txt").write_text("another caption")
    (own / "picture-2.png").write_bytes((own / "picture-0.png").read_bytes())
    (own / "picture-3.png").unlink()
    config = run.config()
    config["optimizer"]["unet_learning_rate"] = 0.5
    config["preview"]["prompts"] = ["another prompt is no reason"]
    run.config_path.write_text(json.dumps(config))
    with pytest.raises(RunError) as caught:
        train_here(run)
    assert [finding.where for finding in caught.value.findings] == [
        "optimizer.unet_learning_rate",
        "picture-1.png",
        "picture-2.png",
        "picture-3.png",
    ]
    assert (run.checkpoints / "step-00000002" / "manifest.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    whole: tuple[Run, dict[str, Any]], model: Path, pictures: Path, data: DataFolder, damage: str
) -> None:
    run = interrupted(data, tiny_settings(model, pictures, RICH), 5)
    weights = run.checkpoints / "step-00000004" / "adapter.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "flipped":
        weights.write_bytes(bytes(content))
    else:
        (weights if damage == "missing" else weights.with_name("manifest.json")).unlink()
    result = train_here(run)
    assert of_type(run, Started)[-1].resumed_from == 2
    assert any("step-00000004 is damaged" in event.message for event in of_type(run, Warned))
    assert tensors(result["lora"]) == tensors(whole[1]["lora"])


def test_a_half_written_checkpoint_is_swept(model: Path, pictures: Path, data: DataFolder) -> None:
    run = interrupted(data, tiny_settings(model, pictures), 3)
    (run.checkpoints / ".partial-step-00000004").mkdir()
    (run.checkpoints / ".partial-step-00000004" / "adapter.safetensors").write_bytes(b"half")
    train_here(run)
    assert not list(run.checkpoints.glob(".partial*"))


def test_a_full_disk_says_so_and_keeps_the_last_checkpoint(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(data, tiny_settings(model, pictures))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "step-00000004" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        train_here(run)
    assert "checkpoint" in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000002"]
    assert train_here(run)["steps"] == 6


def test_nan_names_step_and_pictures_and_spoils_nothing(model: Path, pictures: Path, data: DataFolder) -> None:
    run = interrupted(data, tiny_settings(model, pictures), 3)
    checkpoint = run.checkpoints / "step-00000002"
    weights = load_file(checkpoint / "adapter.safetensors")
    name = next(name for name in weights if name.endswith(".up"))
    weights[name][0, 0] = float("nan")
    save_file(weights, checkpoint / "adapter.safetensors")
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "adapter.safetensors").read_bytes()
    manifest["files"]["adapter.safetensors"] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NonFiniteLossError, match="step 3") as caught:
        train_here(run)
    assert {finding.where for finding in caught.value.findings} <= {path.name for path in pictures.glob("*.png")}
    assert caught.value.findings
    assert not (run.checkpoints / "step-00000004").exists()
    assert not of_type(run, LoraExported)


def test_a_learning_rate_of_zero_changes_nothing(model: Path, pictures: Path, data: DataFolder) -> None:
    zero = {"optimizer": {"unet_learning_rate": 0.0, "text_encoder_learning_rate": 0.0}, "adapter": RICH["adapter"]}
    result = train_here(new_run(data, tiny_settings(model, pictures, zero)))
    ups = [tensor for name, tensor in load_file(result["lora"]).items() if name.endswith("lora_up.weight")]
    assert ups
    assert not any(tensor.any() for tensor in ups)
    assert result["validation_loss_first"] == result["validation_loss_last"]


def test_only_the_part_with_a_rank_and_a_rate_is_trained(model: Path, pictures: Path, data: DataFolder) -> None:
    settings = {
        "adapter": {"unet": {"rank": 4}, "text_encoder": {"rank": 2, "alpha": 1.0}},
        "optimizer": {"unet_learning_rate": 0.0, "text_encoder_learning_rate": 1e-3},
    }
    result = train_here(new_run(data, tiny_settings(model, pictures, settings)))
    for name, tensor in load_file(result["lora"]).items():
        is_text = name.startswith("lora_te_")
        if name.endswith("lora_up.weight"):
            assert bool(tensor.any()) == is_text, name
        if name.endswith("lora_down.weight"):
            assert tensor.shape[0] == (2 if is_text else 4), name
    assert any(
        name.startswith("lora_te_text_model_encoder_layers_0_self_attn_out_proj") for name in tensors(result["lora"])
    )


def test_the_validation_loss_falls(model: Path, pictures: Path, data: DataFolder) -> None:
    learns = {
        "adapter": {"unet": {"rank": 8, "alpha": 8.0, "targets": "all+conv"}},
        "optimizer": {"unet_learning_rate": 2e-2},
        "schedule": {"kind": "constant", "warmup_share": 0.0},
        "training": {"steps": 40, "batch_size": 4},
        "objective": {"min_snr_gamma": 0.0},
        "save": {"checkpoint_every": 0},
    }
    result = train_here(new_run(data, tiny_settings(model, pictures, learns)))
    assert result["validation_loss_last"] < 0.95 * result["validation_loss_first"]


@pytest.mark.parametrize(
    "adapter",
    [
        {"method": "adalora", "adalora": {"every": 1, "start_share": 0.2, "final_share": 0.2}},
        {"method": "loraplus", "text_encoder": {"rank": 2, "alpha": 2.0}},
        {"method": "dora", "module_dropout": 0.2},
    ],
    ids=lambda adapter: adapter["method"],
)
def test_other_methods_train_and_end_with_the_same_bytes_after_a_death(
    model: Path, pictures: Path, data: DataFolder, adapter: dict[str, Any]
) -> None:
    settings = tiny_settings(model, pictures, {"adapter": adapter, "training": {"steps": 4, "batch_size": 1}})
    whole = new_run(data, settings)
    expected = train_here(whole)
    result = train_here(interrupted(data, settings, 3))
    assert tensors(result["lora"]) == tensors(expected["lora"])
    note = of_type(whole, LoraExported)[-1].note
    assert ("AdaLoRA left" in note) == (adapter["method"] == "adalora")
    rates = of_type(whole, StepDone)[-1].learning_rates
    if adapter["method"] == "loraplus":
        assert rates["unet up"] == pytest.approx(16 * rates["unet"])


def test_prior_preservation_makes_class_pictures_once_and_reports_its_loss(
    model: Path, pictures: Path, data: DataFolder
) -> None:
    prior = {
        "data": {"prior": {"class_prompt": "a blue tree", "num_class_images": 3, "weight": 0.5}},
        "training": {"steps": 2},
    }
    run = new_run(data, tiny_settings(model, pictures, prior))
    with_prior = train_here(run)
    made = list((data.cache / "class_images").rglob("*.png"))
    assert len(made) == 3
    times = [path.stat().st_mtime_ns for path in made]
    assert all(event.prior_loss is not None for event in of_type(run, StepDone))
    again = train_here(new_run(data, tiny_settings(model, pictures, prior)))
    assert [path.stat().st_mtime_ns for path in made] == times
    assert tensors(again["lora"]) == tensors(with_prior["lora"])
    # A packed base model makes others, which must not stand for those of the whole one.
    train_here(new_run(data, tiny_settings(model, pictures, prior, {"model": {"quantization": "nf4"}})))
    assert len(list((data.cache / "class_images").rglob("*.png"))) == 6
    prior["data"]["prior"]["weight"] = 0.0
    without = train_here(new_run(data, tiny_settings(model, pictures, prior)))
    assert tensors(without["lora"]) != tensors(with_prior["lora"])


def test_gradient_checkpointing_changes_memory_not_numbers(model: Path, pictures: Path, data: DataFolder) -> None:
    both = {"adapter": {"text_encoder": {"rank": 2, "alpha": 2.0}}, "training": {"steps": 2}}
    plain = train_here(new_run(data, tiny_settings(model, pictures, both)))
    saving = train_here(
        new_run(data, tiny_settings(model, pictures, both, {"training": {"gradient_checkpointing": True}}))
    )
    first, second = load_file(plain["lora"]), load_file(saving["lora"])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-6)


def test_bf16_trains_with_adapters_in_fp32(model: Path, pictures: Path, data: DataFolder) -> None:
    run = new_run(data, tiny_settings(model, pictures, {"model": {"precision": "bf16"}, "training": {"steps": 2}}))
    train_here(run)
    assert of_type(run, Started)[0].precision == "bf16"
    weights = load_file(run.checkpoints / "step-00000002" / "adapter.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_sample_that_fails_is_a_warning(
    model: Path, pictures: Path, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_here(new_run(data, tiny_settings(model, pictures, {"training": {"steps": 2}})))

    def fail(*arguments: object, **options: object) -> None:
        torch.rand(3)
        raise RuntimeError("no picture today")

    monkeypatch.setattr("trainer.training.preview.sample", fail)
    run = new_run(data, tiny_settings(model, pictures, {"training": {"steps": 2}}))
    result = train_here(run)
    assert sum("no picture today" in event.message for event in of_type(run, Warned)) == 2
    assert tensors(result["lora"]) == tensors(plain["lora"])


def test_unreadable_pictures_are_named_and_the_others_used(model: Path, data: DataFolder, tmp_path: Path) -> None:
    own = make_pictures(tmp_path / "own", 3)
    (own / "broken.png").write_text("this is text")
    run = new_run(data, tiny_settings(model, own, {"training": {"steps": 1}}))
    assert train_here(run)["steps"] == 1
    assert any("broken.png" in event.message for event in of_type(run, Warned))


def test_stop_before_the_first_step_ends_as_stopped(model: Path, pictures: Path, data: DataFolder) -> None:
    from trainer.worker import work

    run = new_run(data, tiny_settings(model, pictures))
    run.enqueue()
    run.request("stop")
    assert work(run) == 0
    assert isinstance(run.final_event(), Stopped)
