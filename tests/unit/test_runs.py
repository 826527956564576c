"""A run's state follows from its folder, whatever process died when; the queue starts one at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import jobs
from trainer.cli.commands import train
from trainer.cli.main import main
from trainer.config.loading import build_config
from trainer.errors import ResourceError, RunError
from trainer.events import EventWriter, Failed, Finished, Stage, Stopped
from trainer.locks import FileLock, is_locked
from trainer.paths import DataFolder
from trainer.runs import Run, RunState, create_run, find_run, list_runs, trash_run
from trainer.worker import work


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "数据 folder")


def new_run(data: DataFolder, kind: str = "train") -> Run:
    return create_run(data, kind, "test", {"x": 1})


def test_states_follow_from_the_folder(data: DataFolder) -> None:
    run = new_run(data)
    run.enqueue()
    assert run.state() is RunState.QUEUED
    run.launched(os.getpid())
    assert run.state() is RunState.STARTING
    with FileLock(run.lock_path):
        run.taken()
        assert run.state() is RunState.RUNNING
    assert run.state() is RunState.INTERRUPTED
    emit = EventWriter(run.events_path)
    for event, state in [
        (Stopped(step=3), RunState.STOPPED),
        (Failed(error={"message": "x"}), RunState.FAILED),
        (Finished(), RunState.FINISHED),
        (Stage(name="resumed"), RunState.INTERRUPTED),
    ]:
        emit(event)
        assert run.state() is state


def test_lock_is_free_when_its_process_is_killed(data: DataFolder) -> None:
    run = new_run(data)
    code = f"import time; from trainer.locks import FileLock; from pathlib import Path\nwith FileLock(Path({str(run.lock_path)!r})):\n  print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert is_locked(run.lock_path)
    process.kill()
    process.wait()
    assert not is_locked(run.lock_path)


@pytest.mark.skipif(os.name == "nt", reason="the look is held open by POSIX means")
def test_a_look_at_a_lock_is_not_taken_for_its_holder(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "x.lock"
    with open(path, "ab") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, looking.close).start()
        with FileLock(path):
            assert is_locked(path)
        with FileLock(path), pytest.raises(RunError), FileLock(path):
            pass


def test_launch_whose_process_is_gone_counts_as_interrupted_even_if_its_pid_is_reused(data: DataFolder) -> None:
    run = new_run(data)
    run.enqueue()
    run.launched(os.getpid())
    launch = (run.folder / "launch.json").read_text()
    created = launch.split('"process_created": ')[1].split(",")[0]
    (run.folder / "launch.json").write_text(launch.replace(created, "1000.0"))
    assert run.state() is RunState.INTERRUPTED
    assert run.pid() is None


def test_second_worker_does_nothing(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = new_run(data), []
    monkeypatch.setitem(jobs.JOBS, "train", jobs.JobKind("tests.unit.test_runs:unused", "x"))
    monkeypatch.setattr("trainer.worker.load_object", lambda reference: calls.append)
    run.enqueue()
    assert work(run) == 0
    assert work(run) == 0
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_failure_becomes_an_event_with_a_sentence_and_the_log_keeps_the_traceback(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def explode(context: jobs.JobContext) -> None:
        raise error

    run = new_run(data)
    monkeypatch.setattr("trainer.worker.load_object", lambda reference: explode)
    run.enqueue()
    assert work(run) == ResourceError.exit_code
    final = run.final_event()
    assert isinstance(final, Failed)
    assert final.error["code"] == "resource"
    assert "memory" in final.error["message"].lower()
    assert "batch size" in final.error["fix"]
    assert "Traceback" in caplog.text
    assert run.state() is RunState.FAILED


def test_queue_starts_the_oldest_one_at_a_time(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(jobs, "launch", lambda run, arguments=None: (started.append(run.id), run.launched(os.getpid())))
    first, second = new_run(data), new_run(data)
    jobs.enqueue(first, data)
    time.sleep(0.01)
    jobs.enqueue(second, data)
    assert started == [first.id]
    assert second.state() is RunState.QUEUED
    EventWriter(first.events_path)(Finished())
    first.taken()
    jobs.start_next(data)
    assert started == [first.id, second.id]


def test_enqueueing_twice_is_refused(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "launch", lambda run, arguments=None: run.launched(os.getpid()))
    run = new_run(data)
    jobs.enqueue(run, data)
    with pytest.raises(RunError):
        jobs.enqueue(run, data)


def test_stopping_a_waiting_run_takes_it_out_of_the_queue(data: DataFolder) -> None:
    run = new_run(data)
    run.enqueue()
    jobs.stop_run(run, data)
    assert run.state() is RunState.STOPPED


def test_runs_are_never_overwritten(data: DataFolder, tmp_path: Path) -> None:
    create_run(data, "train", "a", {}, tmp_path / "mine")
    with pytest.raises(RunError, match="already holds"):
        create_run(data, "train", "b", {}, tmp_path / "mine")


def test_find_by_start_of_id_and_delete_to_trash(data: DataFolder) -> None:
    run = new_run(data)
    assert find_run(data, run.id[:-2]).folder == run.folder
    target = trash_run(run, data)
    assert list_runs(data) == []
    assert (target / "run.json").exists()
    with pytest.raises(RunError, match="no run"):
        find_run(data, run.id)


def test_a_download_goes_on_beside_a_training_and_two_trainings_take_turns(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []

    def launch(run: Run, arguments: list[str] | None = None) -> None:
        launched.append(run.id)
        run.launched(os.getpid())

    monkeypatch.setattr(jobs, "launch", launch)
    runs = [create_run(data, kind, kind, {}) for kind in ("train", "train", "download")]
    for run in runs:
        jobs.enqueue(run, data)
    assert launched == [runs[0].id, runs[2].id]
    assert runs[1].state() is RunState.QUEUED
    runs[0].taken()
    jobs.start_next(data)
    assert launched[-1] == runs[1].id, "a download under way keeps nobody waiting"


def test_a_run_is_named_so_that_the_command_line_finds_it(data: DataFolder, tmp_path: Path) -> None:
    ours, own = new_run(data), create_run(data, "train", "test", {}, folder=tmp_path / "my runs" / "first")
    assert ours.reference == ours.id
    for run in (ours, own):
        assert find_run(data, *shlex.split(run.reference)).folder == run.folder


@pytest.mark.parametrize("command", ["train", "resume"])
def test_a_detached_run_in_a_folder_of_ones_own_is_started_and_not_left_waiting(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(train, "launch", lambda run: started.append(run.folder))
    folder = tmp_path / "my runs" / "first"
    if command == "train":
        words = ["train", "--preset", "embedded-quick", "--dataset", "ink-wash", "--run", str(folder)]
    else:
        run = create_run(data, "train", "test", build_config().model_dump(mode="json"), folder=folder)
        run.request("cancel")
        words = ["resume", str(folder)]
    assert main([*words, "--detach", "--data-dir", str(data.root)]) == 0
    assert started == [folder]
    assert f"inkwash jobs --follow '{folder}'" in capsys.readouterr().err
