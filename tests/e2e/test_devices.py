"""Runs on several devices: processes on the CPU that must learn what one learns, and end together whatever happens to one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.test_training import RICH, of_type, tensors
from tests.ranks import can_fork, on_ranks, train_on_ranks
from tests.tiny_training import new_run, tiny_settings, train_here
from trainer.config.loading import merge
from trainer.errors import RunError
from trainer.events import (
    CheckpointSaved,
    Event,
    Failed,
    Finished,
    Picture,
    Started,
    StepDone,
    Stopped,
    Validated,
    Warned,
)
from trainer.jobs import JobContext, launch, worker_environment
from trainer.paths import DataFolder
from trainer.ranks import LOOK_SECONDS, FollowingRun, own_place
from trainer.runs import Run, RunState
from trainer.training.job import train

pytestmark = pytest.mark.skipif(not can_fork(), reason="the processes are forked")
# Elements of a batch that are dropped in training are each process's own; all else is drawn for the batch of all.
SHARED = merge(
    RICH,
    {
        "data": {"resolution": 32},
        "adapter": {"dropout": 0.0},
        "training": {"steps": 4, "num_devices": 2, "device": "cpu"},
    },
)


@pytest.fixture(scope="module")
def whole(model: Path, pictures: Path, data: DataFolder) -> Run:
    """A run on two devices that nothing interrupts; the first in its data folder."""
    run = new_run(data, tiny_settings(model, pictures, SHARED))
    assert train_on_ranks(run) == [0, 0], run.log_tail()
    return run


@pytest.fixture(scope="module")
def one(model: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same on one device, with the batch doubled, and with caches of its own."""
    settings = tiny_settings(model, pictures, SHARED, {"training": {"num_devices": 1, "batch_size": 4}})
    run = new_run(DataFolder(tmp_path_factory.mktemp("data")), settings)
    train_here(run)
    return run


def lora_of(run: Run) -> Path:
    [path] = run.lora.glob("*.safetensors")
    return path


def assert_close(first: Path, second: Path) -> None:
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-5)


def with_hooks(
    run: Run, on_event: Callable[[Event], None] | None = None, before: Callable[[int], None] | None = None
) -> list[int]:
    """Train on two processes whose main one calls `on_event`; `before` changes something in a process that has forked."""

    def part(index: int) -> int | None:
        if before is not None:
            before(index)
        if index:
            train(JobContext(FollowingRun(run.folder), lambda event: None))
        else:
            train_here(run, on_event)
        return 0

    return on_ranks(2, part, run.log_path)


def test_two_devices_learn_what_one_learns_with_the_batch_doubled(whole: Run, one: Run) -> None:
    assert_close(lora_of(whole), lora_of(one))
    for kind, names in ((StepDone, ("loss", "grad_norm", "epoch", "learning_rates")), (Validated, ("loss",))):
        for mine, theirs in zip(of_type(whole, kind), of_type(one, kind), strict=True):
            for name in names:
                assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-4)
    assert of_type(whole, Started)[0].device == "2 × cpu"
    assert of_type(whole, Warned) == of_type(one, Warned) == []
    metadata = [json.loads(json.dumps(load_metadata(lora_of(run)))) for run in (whole, one)]
    assert metadata[0]["ss_total_batch_size"] == metadata[1]["ss_total_batch_size"] == "4"


def load_metadata(path: Path) -> dict[str, str]:
    from trainer.lora_files.header import read_header

    return read_header(path)[0]


def test_only_the_main_process_writes_and_caches_are_made_once(whole: Run, one: Run, data: DataFolder) -> None:
    assert [event.step for event in of_type(whole, StepDone)] == [1, 2, 3, 4]
    assert [event.step for event in of_type(whole, CheckpointSaved)] == [2, 4]
    assert [event.step for event in of_type(whole, Picture)] == [0, 4]
    assert len(of_type(whole, Finished)) == 1
    assert len(list(data.loras.glob("*.safetensors"))) == 1
    log = whole.log_tail()
    made = [
        int(line.split(": ")[-1].split()[0].rsplit(":", 1)[-1]) for line in log.splitlines() if "latents were" in line
    ]
    assert sorted(made) == [5, 5]  # five pictures, each also mirrored
    ours = {path.name: path.read_bytes() for path in (data.cache / "latents").rglob("*.safetensors")}
    theirs = {path.name: path.read_bytes() for path in (one.data_folder().cache / "latents").rglob("*.safetensors")}
    assert ours == theirs


def test_a_stopped_run_goes_on_to_the_same_bytes(whole: Run, model: Path, pictures: Path, data: DataFolder) -> None:
    run = new_run(data, tiny_settings(model, pictures, SHARED))

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            run.request("stop")

    with_hooks(run, stop)
    assert [event.step for event in of_type(run, CheckpointSaved)] == [2, 3], run.log_tail()
    assert "Traceback" in run.log_tail()
    assert "Cancelled" in run.log_tail()
    run.clear_requests()
    assert train_on_ranks(run) == [0, 0], run.log_tail()
    assert of_type(run, Started)[-1].resumed_from == 3
    assert tensors(lora_of(run)) == tensors(lora_of(whole))


def test_a_dead_process_ends_the_run_and_one_device_goes_on_with_it(
    one: Run, model: Path, pictures: Path, data: DataFolder
) -> None:
    run = new_run(data, tiny_settings(model, pictures, SHARED))

    def die(index: int) -> None:
        import trainer.training.step as step

        inner = step._accumulate_gradients

        def dying(parts: Any, number: int) -> Any:
            if number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(parts, number)

        if index:
            step._accumulate_gradients = dying

    # One that waited for the dead would be killed after two minutes, with another code.
    codes = train_with(run, die)
    assert codes == [RunError.exit_code, -signal.SIGKILL]
    assert run.state() is RunState.FAILED
    assert "on another device, ended" in of_type(run, Failed)[-1].error["message"]
    assert "Resume" in of_type(run, Failed)[-1].error["fix"]

    # The batch of all is what counts: another share of it is allowed, another batch is not.
    settings = run.config()
    for changes, is_same in (({"num_devices": 1, "batch_size": 3}, False), ({"num_devices": 1, "batch_size": 4}, True)):
        run.config_path.write_text(json.dumps(merge(settings, {"training": changes})))
        if is_same:
            train_here(run)
        else:
            with pytest.raises(RunError) as caught:
                train_here(run)
            assert [str(finding) for finding in caught.value.findings] == ["training.batch_size: was 4, is 3"]
    assert of_type(run, Started)[-1].resumed_from == 2
    assert "another number of devices (2 before, 1 now)" in " ".join(event.message for event in of_type(run, Warned))
    assert_close(lora_of(run), lora_of(one))


def train_with(run: Run, before: Callable[[int], None]) -> list[int]:
    """As `train_on_ranks`, with `before` called in each process."""
    from trainer.worker import work_as_rank

    def part(index: int) -> int:
        before(index)
        return work_as_rank(run, own_place(), is_asked=True)

    return on_ranks(2, part, run.log_path)


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [("memory", "resource", "memory of device 2"), ("nan", "non_finite_loss", "NaN or infinite in step 2")],
)
def test_a_fault_on_one_device_ends_all_with_its_sentence(
    model: Path, pictures: Path, data: DataFolder, kind: str, code: str, words: str
) -> None:
    run = new_run(
        data,
        tiny_settings(model, pictures, {"data": {"resolution": 32}, "training": {"num_devices": 2, "device": "cpu"}}),
    )

    def break_down(index: int) -> None:
        import trainer.training.step as step

        inner, calls = step.denoising_loss, []

        def broken(parts: Any, batch: Any) -> Any:
            calls.append(batch)
            if len(calls) == 2 and kind == "memory":
                raise MemoryError
            return inner(parts, batch) * (float("nan") if len(calls) == 2 else 1.0)

        if index:
            step.denoising_loss = broken

    codes = train_with(run, break_down)
    error = of_type(run, Failed)[-1].error
    assert 0 not in codes
    assert error["code"] == code
    assert words in error["message"]
    assert [event.step for event in of_type(run, StepDone)] == [1]
    if kind == "nan":
        # Those of both devices: 4 showings, of a bucket with fewer pictures.
        order = {finding["where"] for finding in error["findings"]}
        assert len(order) >= 2


@pytest.mark.slow
def test_the_app_and_the_command_line_start_it_like_any_run(
    whole: Run, model: Path, pictures: Path, data: DataFolder
) -> None:
    run = new_run(data, tiny_settings(model, pictures, SHARED))
    run.enqueue()
    assert launch(run).wait(300) == 0, run.log_tail()
    assert run.state() is RunState.FINISHED
    assert len({event.pid for event in of_type(run, Started)}) == 1
    assert tensors(lora_of(run)) == tensors(lora_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["rank 0", "rank 1", "the job's process", "stop"])
def test_whoever_is_killed_the_others_end_and_a_resume_gives_the_same_bytes(
    whole: Run, model: Path, pictures: Path, data: DataFolder, who: str
) -> None:
    run = new_run(data, tiny_settings(model, pictures, SHARED))
    run.enqueue()
    process = launch(run)
    family = psutil.Process(process.pid)
    deadline = time.monotonic() + 300
    at = 3 if who.startswith("rank") else 1  # whoever asks in the last step gets the whole run
    while not any(event.step >= at for event in of_type(run, StepDone)):
        assert process.poll() is None, run.log_tail()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = family.children(recursive=True)
    ranks = sorted(
        (child for child in children if "RANK" in child.environ()), key=lambda child: child.environ()["RANK"]
    )
    assert len(ranks) == 2
    if who == "stop":
        process.send_signal(signal.SIGTERM)
    elif who == "the job's process":
        # The steps of this model are shorter than the time between two looks: they hold still until one is due.
        for rank in ranks:
            rank.suspend()
        family.kill()
        time.sleep(2 * LOOK_SECONDS)
        for rank in ranks:
            rank.resume()
    else:
        {"rank 0": ranks[0], "rank 1": ranks[1]}[who].kill()
    process.wait(120)
    _, alive = psutil.wait_procs(children, 60)
    assert alive == [], run.log_tail()
    if who == "stop":
        assert 1 <= of_type(run, Stopped)[-1].step <= 3
        assert process.returncode == 0
    elif who == "the job's process":
        assert run.state() is RunState.INTERRUPTED
    else:
        assert run.state() is RunState.FAILED
        assert of_type(run, Failed)[-1].error["fix"].endswith("last checkpoint.")
    run.enqueue()
    assert launch(run).wait(300) == 0, run.log_tail()
    assert tensors(lora_of(run)) == tensors(lora_of(whole))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be as many as it asks for")
def test_cards_that_are_not_there_are_refused_with_one_sentence(model: Path, pictures: Path, data: DataFolder) -> None:
    run = new_run(data, tiny_settings(model, pictures, {"training": {"num_devices": 2, "device": "cuda"}}))
    run.enqueue()
    assert launch(run).wait(300) != 0
    [failed] = [event for event in run.events() if event.is_final]
    assert failed.error["where"] == "training.device"
    assert "'cuda' was asked for, but PyTorch does not see it" in failed.error["message"]
    assert of_type(run, StepDone) == []


@pytest.mark.slow
def test_devices_that_round_differently_go_on_from_the_first_ones_weights(
    model: Path, pictures: Path, data: DataFolder
) -> None:
    run = new_run(data, tiny_settings(model, pictures, SHARED))

    def round_differently(index: int) -> None:
        import trainer.training.step as step

        inner = step._accumulate_gradients

        def rounding(parts: Any, number: int) -> Any:
            if number == 2:
                with torch.no_grad():
                    parts.trainable[0] += 1e-6
            return inner(parts, number)

        if index:
            step._accumulate_gradients = rounding

    assert train_with(run, round_differently) == [0, 0], run.log_tail()
    [note] = [event.message for event in of_type(run, Warned)]
    assert note.startswith("After step 2 the devices' weights differed")


@pytest.mark.slow
def test_launchers_on_two_machines_start_a_prepared_run_together(
    whole: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(tiny_settings(model, pictures, SHARED)))
    environment = worker_environment() | {"OMP_NUM_THREADS": "1"}
    options = ["--data-dir", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--prepare"]
    prepared = subprocess.run(
        [sys.executable, "-m", "trainer", "train", str(settings), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    run = Run(Path(prepared.stdout.strip()))
    assert run.state() is RunState.STOPPED, "it waits for a scheduler, not in the queue"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    common += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    machines = [
        subprocess.Popen(
            [*common, "--machine_rank", str(rank), "--module", "trainer.worker", str(run.folder), "--start"],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [machine.wait(300) for machine in machines] == [0, 0]
    assert run.state() is RunState.FINISHED
    assert tensors(lora_of(run)) == tensors(lora_of(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"method": "adalora", "adalora": {"every": 1}}},
        {"optimizer": {"name": "prodigy", "prodigy": {"initial": 1e-3}}, "training": {"ema_decay": 0.8}},
        {"optimizer": {"name": "schedule_free_adamw"}, "schedule": {"kind": "constant"}, "validation": {"every": 2}},
        {"adapter": {"method": "lokr", "module_dropout": 0.3}},
        {"data": {"prior": {"class_prompt": "a house", "source": "base_prediction"}}},
        {
            "data": {"prior": {"class_prompt": "a house", "num_class_images": 4}},
            "training": {"gradient_checkpointing": True},
        },
        {"adapter": {"init": "pissa"}},
        {
            "adapter": {"embedding": {"num_vectors": 2, "phase": "first"}},
            "optimizer": {"embedding_learning_rate": 1e-2},
        },
    ],
)
def test_every_kind_of_run_learns_on_two_devices_what_it_learns_on_one(
    model: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = tiny_settings(model, pictures, {"training": {"num_devices": 2, "device": "cpu"}}, changes)
    one, two = (new_run(DataFolder(tmp_path / name), settings) for name in ("one", "two"))
    train_here(one)
    assert train_on_ranks(two) == [0, 0], two.log_tail()
    notes = [[event.message for event in of_type(run, Warned)] for run in (one, two)]
    assert notes[0] == notes[1], "such as that the devices' weights differed"
    for mine, theirs in zip(of_type(two, StepDone), of_type(one, StepDone), strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-3)
        assert mine.learning_rates == pytest.approx(theirs.learning_rates, rel=1e-3)
    for name, tensor in load_file(lora_of(two)).items():
        torch.testing.assert_close(tensor, load_file(lora_of(one))[name], rtol=2e-3, atol=2e-4)
