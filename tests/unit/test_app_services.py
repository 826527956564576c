"""What the tabs call: runs read from their folders, checks before a start, the stack, the server's port and lock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app import render
from app.recipe_view import recipe
from app.server import choose_port
from app.services.generation import GenerationService
from app.services.jobs import JobService
from app.services.settings import SettingsStore
from app.services.training import TrainingService
from app.tabs.lora_stack import moved, new_row, with_value, without
from trainer.config.loading import flatten, nest
from trainer.config.run import RunConfig
from trainer.errors import ChangedRunError, ConfigError, NonFiniteLossError, ResourceError, RunError
from trainer.events import (
    Changed,
    EventWriter,
    Failed,
    Finished,
    Picture,
    Remedied,
    Started,
    StepDone,
    Stopped,
    Validated,
    Warned,
)
from trainer.locks import FileLock
from trainer.paths import DataFolder
from trainer.resumption import Resumption
from trainer.runs import Run, RunState, create_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


def step(number: int, total: int = 10, loss: float = 0.5) -> StepDone:
    return StepDone(step=number, total_steps=total, loss=loss)


def write(run: Run, *events: Any) -> None:
    writer = EventWriter(run.events_path)
    for event in events:
        writer(event)
    writer.close()


def made(data: DataFolder, *events: Any, kind: str = "train", title: str = "a") -> Run:
    run = create_run(data, kind, title, {})
    write(run, *events)
    return run


def test_history_counts_steps_of_a_resumed_run_once(data: DataFolder) -> None:
    run = made(data, Started(pid=1, total_steps=10), step(1), step(2), step(3), Stopped(step=2))
    jobs = JobService(data)
    assert [number for number, _ in jobs.history(run.id).losses] == [1, 2, 3]
    write(run, Started(pid=2, total_steps=10, resumed_from=2), step(3, loss=0.1), step(4))
    history = jobs.history(run.id)
    assert history.losses == [(1, 0.5), (2, 0.5), (3, 0.1), (4, 0.5)]
    assert history.final is None
    assert history.total_steps == 10


def test_the_chart_of_timesteps_follows_the_settings(data: DataFolder) -> None:
    service = TrainingService(data)
    charts = {}
    for name, objective in {
        "all": {},
        "bell": {"timestep_distribution": "logit_normal", "timestep_std": "0.5"},
        "range": {"min_timestep": 500},
    }.items():
        shares = service.timestep_shares({"objective": objective, "training": {"steps": "not looked at"}})
        assert shares is not None
        assert sum(shares) == pytest.approx(1)
        charts[name] = (shares, render.timestep_chart(shares))
        assert charts[name][1].count("<rect") == len(shares)
    assert charts["bell"][0][25] > 3 * charts["bell"][0][5]
    assert set(charts["range"][0][:25]) == {0.0}
    assert len({chart for _, chart in charts.values()}) == 3
    assert service.timestep_shares({"objective": {"timestep_std": "wide"}}) is None
    assert service.timestep_shares({"objective": {"min_timestep": 600, "max_timestep": 500}}) is None
    assert render.timestep_chart([]) == ""


def test_states_and_results_in_the_list(data: DataFolder) -> None:
    finished = made(data, Started(pid=1), Finished(result={"lora": "lora/a.safetensors"}))
    failed = made(data, Started(pid=1), Failed(error={"code": "dataset", "message": "No pictures."}))
    cut_off = made(data, Started(pid=1), step(1))
    rows = {row.id: row for row in JobService(data).rows()}
    assert rows[finished.id].state is RunState.FINISHED
    assert rows[finished.id].result == "a.safetensors"
    assert rows[failed.id].result == "No pictures."
    assert rows[failed.id].is_resumable
    assert rows[cut_off.id].state is RunState.INTERRUPTED
    assert rows[cut_off.id].is_resumable
    assert not rows[finished.id].is_resumable


def test_a_fault_offers_its_remedies_and_each_resumes_with_it(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.services.jobs.enqueue", lambda run, _data: run.enqueue())
    jobs = JobService(data)
    nan = made(data, Started(pid=1, total_steps=10), Failed(error=NonFiniteLossError("NaN.", step=3).to_dict()))
    offers = jobs.remedies(nan.id)
    assert [offer.on_nan for offer in offers.values()] == ["lower_rate", "skip_batch"]
    jobs.resume(nan.id, offers["Go on with lower rates"])
    assert nan.config()["training"]["on_nan"] == "lower_rate"
    assert nan.state() is RunState.QUEUED
    assert jobs.remedies(nan.id) == {}
    changed = made(data, Failed(error=ChangedRunError("It changed.").to_dict()))
    (offer,) = jobs.remedies(changed.id).values()
    jobs.resume(changed.id, offer)
    assert changed.has_request("accept_changes")
    other = made(data, Failed(error=ResourceError("Full.").to_dict()))
    assert jobs.remedies(other.id) == {}
    write(other, Started(pid=2, total_steps=10), Changed(step=3, changes=["a.b: was 1, is 2"]))
    write(other, Remedied(step=5, back_to=4, action="lower_rate", rate_factor=0.5, pictures=["<i>.png"]))
    page = render.status(jobs.row(other.id), jobs.history(other.id))
    assert "a.b: was 1, is 2" in page
    assert "0.5 times the learning rates" in page
    assert "<i>" not in page


def test_a_finished_run_is_trained_on_and_not_resumed(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.jobs.enqueue", lambda run, _data: run.enqueue())
    jobs = JobService(data)
    run = made(data, Started(pid=1, total_steps=10), step(10), Finished(result={}))
    (run.checkpoints / "step-00000010").mkdir(parents=True)
    assert jobs.row(run.id).is_extensible
    with pytest.raises(RunError, match="cannot be resumed"):
        jobs.resume(run.id)
    with pytest.raises(RunError, match="10 steps of this run are done"):
        jobs.resume(run.id, Resumption(steps=10))
    jobs.resume(run.id, Resumption(steps=25))
    assert run.config()["training"]["steps"] == 25
    assert not jobs.row(run.id).is_extensible


def test_a_list_follows_a_run_that_goes_on_after_it_was_over(data: DataFolder) -> None:
    run = made(data, Started(pid=1), step(1), Stopped(step=1))
    jobs = JobService(data)
    assert jobs.row(run.id).state is RunState.STOPPED
    assert jobs.row(run.id).state is RunState.STOPPED
    with FileLock(run.lock_path):
        assert jobs.row(run.id).state is RunState.RUNNING
    write(run, Finished(result={}))
    assert jobs.row(run.id).state is RunState.FINISHED


def test_newest_prefers_what_works(data: DataFolder) -> None:
    working = made(data, Started(pid=1))
    time.sleep(1.1)  # ids are ordered by second
    newest = made(data, Started(pid=1), Finished())
    jobs = JobService(data)
    assert jobs.newest("train") == newest.id
    with FileLock(working.lock_path):
        assert jobs.newest("train") == working.id
    assert jobs.newest("generate") is None


@pytest.mark.parametrize("run_id", ["", "..", "../runs", "/etc", "a/b", ".hidden", "nothing"])
def test_ids_from_the_browser_name_runs_of_this_folder_only(data: DataFolder, run_id: str) -> None:
    made(data)
    with pytest.raises(RunError):
        JobService(data).run(run_id)


def test_delete_moves_to_the_trash_and_forgets(data: DataFolder) -> None:
    run = made(data, Finished())
    jobs = JobService(data)
    jobs.row(run.id)
    target = jobs.delete(run.id)
    assert target.parent == data.trash
    assert (target / "config.json").exists()
    assert jobs.rows() == []


def test_requests_are_refused_unless_the_run_works(data: DataFolder) -> None:
    run = made(data, Finished())
    jobs = JobService(data)
    with pytest.raises(RunError):
        jobs.request(run.id, "save")
    with pytest.raises(RunError):
        jobs.stop(run.id)
    with FileLock(run.lock_path):
        jobs.request(run.id, "save")
        jobs.stop(run.id)
        assert run.has_request("save")
        assert run.has_request("stop")
        assert not jobs.can_kill(run.id)
        os.utime(run.folder / "requests" / "stop", (1, 1))
        assert jobs.can_kill(run.id)


def test_polling_many_runs_is_quick(data: DataFolder) -> None:
    for number in range(60):
        made(data, Started(pid=1), *(step(n, 400) for n in range(1, 401)), Finished(), title=str(number))
    jobs = JobService(data)
    jobs.rows()
    started = time.perf_counter()
    jobs.rows()
    jobs.newest("train")
    # 50 ms are promised for one poll on a quiet machine; this leaves room for a busy one.
    assert (time.perf_counter() - started) / 2 < 0.25


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_nothing_of_a_run_is_markup(data: DataFolder) -> None:
    evil = "<img src=x onerror=alert(1)>\"'"
    run = made(
        data,
        Started(pid=1, device=evil, total_steps=2),
        Warned(message=evil),
        Picture(path=f"samples/{evil}.png", prompt=evil),
        step(1),
        Validated(step=1, loss=0.4),
        Failed(error={"code": "dataset", "message": evil, "where": evil, "fix": evil}),
        title=evil,
    )
    jobs = JobService(data)
    row, history = jobs.row(run.id), jobs.history(run.id)
    pieces = [render.status(row, history), render.sample_grid(history), render.loss_chart(history)]
    pieces += [render.status_line(row, history), recipe({"prompt": evil, "loras": []}), render.empty(evil)]
    for piece in pieces:
        assert "<img src=x" not in piece
        assert "\"'" not in piece
    assert "&lt;img src=x" in pieces[0]


def test_the_chart_draws_every_length(data: DataFolder) -> None:
    jobs = JobService(data)
    empty = made(data)
    assert "<svg" not in render.loss_chart(jobs.history(empty.id))
    one = made(data, step(1))
    assert "<svg" in render.loss_chart(jobs.history(one.id))
    many = made(data, *(step(n, 5000, loss=1 / n) for n in range(1, 5001)))
    chart = render.loss_chart(jobs.history(many.id))
    assert len(chart) < 20_000
    assert "nan" not in chart


def test_smoothing_starts_without_bias() -> None:
    assert render.smooth([(1, 2.0), (2, 2.0)]) == [(1, pytest.approx(2.0)), (2, pytest.approx(2.0))]


# --- training --------------------------------------------------------------------------------------------------------


def values(**changes: Any) -> dict[str, Any]:
    return nest(flatten(RunConfig()) | {path.replace("__", "."): value for path, value in changes.items()})


def test_a_start_without_a_data_set_names_the_field(data: DataFolder) -> None:
    service = TrainingService(data)
    with pytest.raises(ConfigError) as caught:
        service.start(values())
    assert "data.dataset" in {finding.where for finding in caught.value.findings}
    assert not data.runs.exists() or not any(data.runs.iterdir())


def test_an_unknown_base_or_data_set_is_found_before_the_start(data: DataFolder) -> None:
    service = TrainingService(data)
    config, findings = service.check(values(data__dataset="no-such-set", model__base="no-such-model"))
    assert config is not None
    assert {finding.where for finding in findings} == {"data.dataset", "model.base"}


def test_the_plan_counts_epochs_and_showings(data: DataFolder) -> None:
    service = TrainingService(data)
    info = service.datasets()[0]
    config, _ = service.check(values(data__dataset=info.name, training__steps=100, training__batch_size=4))
    assert config is not None
    text = service.plan_text(config)
    assert f"{info.num_pictures} pictures" in text
    assert f"shown {400 / info.num_pictures:,.0f} times" in text
    doubled = config.training.model_copy(update={"num_devices": 2})
    assert f"shown {800 / info.num_pictures:,.0f} times" in service.plan_text(
        config.model_copy(update={"training": doubled})
    )


@pytest.mark.parametrize("name", [preset.name for preset in TrainingService(DataFolder(Path("none"))).presets()])
def test_every_preset_fills_every_field(data: DataFolder, name: str) -> None:
    filled = TrainingService(data).preset_values(name)
    assert set(filled) == set(flatten(RunConfig()))


# --- generation ------------------------------------------------------------------------------------------------------


def test_a_stack_names_files_of_the_library_only(data: DataFolder) -> None:
    service = GenerationService(data)
    for name in ("missing", "../../etc/passwd", ""):
        with pytest.raises(ConfigError) as caught:
            service.check({"prompt": "a"}, [new_row(name)])
        assert [finding.where for finding in caught.value.findings] == ["loras"]
        # One that is switched off is not in the way, and stays on the stack.
        assert [lora.file for lora in service.check({"prompt": "a"}, [new_row(name or "gone", on=False)]).loras]
    with pytest.raises(ConfigError) as caught:
        service.check({"prompt": "a", "width": 13}, [])
    assert [finding.where for finding in caught.value.findings] == ["width"]


def test_a_recipe_tells_what_the_library_lacks(data: DataFolder) -> None:
    form, stack, missing = GenerationService(data).split({"prompt": "a", "loras": [{"file": "/x/gone.safetensors"}]})
    assert form == {"prompt": "a"}
    assert stack == []
    assert missing == ["gone.safetensors"]


def test_rows_of_the_stack_move_change_and_go() -> None:
    a, b = new_row("a"), new_row("b")
    assert [row["name"] for row in moved([a, b], b["id"], -1)] == ["b", "a"]
    assert moved([a, b], a["id"], -1) == [a, b]
    assert moved([a, b], b["id"], 1) == [a, b]
    assert with_value([a, b], b["id"], "unet", 0.3)[1]["unet"] == 0.3
    assert b["unet"] == 1.0
    assert without([a, b], a["id"]) == [b]


# --- settings, port --------------------------------------------------------------------------------------------------


def test_settings_survive_and_damage_is_set_aside(data: DataFolder) -> None:
    SettingsStore(data).save("theme", "dark")
    assert SettingsStore(data).get("theme") == "dark"
    (data.root / "settings.json").write_text('{"theme":')
    assert SettingsStore(data).get("theme") is None
    assert (data.root / "settings.damaged").exists()


def test_a_busy_port_is_skipped_or_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=str(port)):
            choose_port("127.0.0.1", port)
        assert choose_port("127.0.0.1", 0) != port
    assert choose_port("127.0.0.1", None) >= 7860
    with pytest.raises(ResourceError):
        choose_port("127.0.0.1", 99999)


def test_the_built_page_has_loaded_no_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path\n"
        "from app.page import build_page; from app.services.context import Services\n"
        "from trainer.paths import DataFolder\n"
        "build_page(Services(DataFolder(Path(sys.argv[1]))))\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(json.loads(result.stdout.strip().splitlines()[-1]))
    assert loaded & {"torch", "diffusers", "transformers", "peft", "accelerate"} == set()
