"""The jobs that bring pictures in: what they tell, what a cancel and a refusal leave, and what becomes of dropped files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.services.datasets import DatasetService
from app.uploads import with_names
from tests import zoo
from trainer.config.loading import build_restore_config
from trainer.dataset.bring_job import bring, keep_dropped, restore, start_restoring, sweep_dropped
from trainer.dataset.store import DatasetStore
from trainer.dataset.versions import current_version, write_versions
from trainer.errors import Cancelled, DatasetError, InkwashError
from trainer.events import EventWriter, Stage
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.runs import Run, create_run


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests do the jobs themselves."""
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)


def pictures(folder: Path, *names: str) -> Path:
    """Pictures with captions that say in which folder they lie."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        zoo.good(path, f"of {path.parent.name}", seed=number)
    return folder


def dropped(tmp_path: Path, folder: Path) -> tuple[list[str], list[str]]:
    """A folder as the page gets it: each file in a folder of its own under its mere name, and its name below the folder."""
    files, names = [], []
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        place = tmp_path / "web" / str(number) / path.name
        place.parent.mkdir(parents=True)
        place.write_bytes(path.read_bytes())
        files.append(str(place))
        names.append(path.relative_to(folder.parent).as_posix())
    return files, names


def work(run: Run, job: Any = bring, stop_at: str = "") -> dict[str, Any]:
    """Do a job in this process; it is asked to stop once it is at a stage."""
    stages: list[str] = []
    writer = EventWriter(run.events_path)

    def emit(event: Any) -> None:
        stages.extend([event.name] if isinstance(event, Stage) else [])
        writer(event)

    def is_there(stage: str) -> bool:
        return bool(stop_at) and stage.startswith(stop_at)

    real = run.has_request
    run.has_request = lambda name: any(map(is_there, stages)) or real(name)  # type: ignore[method-assign]
    try:
        return job(JobContext(run, emit))
    finally:
        writer.close()


def left(data: DataFolder) -> list[str]:
    """What lies beside and among the data sets, whole or half."""
    kept = list((data.cache / "dropped").glob("*"))
    return sorted(path.name for path in [*data.datasets.glob("*"), *data.datasets.glob(".*"), *kept])


def import_run(data: DataFolder, name: str, *sources: Path, is_new: bool = True) -> Run:
    values = {"dataset": name, "is_new": is_new, "sources": [{"path": str(path)} for path in sources]}
    return create_run(data, "import", "t", values)


def test_each_stage_goes_on_to_its_end(data: DataFolder, tmp_path: Path) -> None:
    files = pictures(tmp_path / "in", *(f"{n}.png" for n in range(5)))
    archive = zoo.zip_of(tmp_path / "a.zip", {path.name: path.read_bytes() for path in files.iterdir()})
    run = import_run(data, "ink", archive)
    result = work(run)
    assert result == {
        "datasets": ["ink"],
        "summary": "5 pictures added, 5 captions.",
        "left_out": [],
        "num_left_out": 0,
    }
    told: dict[str, list[tuple[int, int]]] = {}
    for event in run.events():
        if isinstance(event, Stage):
            told.setdefault(event.name, []).append((event.done, event.total))
    assert list(told) == ["Unpacking the zip", "Copying pictures", "Writing to the disk"]
    for name, seen in told.items():
        assert seen == sorted(seen), name
        assert seen[-1] == (seen[0][1],) * 2, name


@pytest.mark.parametrize("stage", ["Unpacking the zip", "Copying pictures", "Writing to the disk"])
def test_a_cancel_leaves_nothing(data: DataFolder, tmp_path: Path, stage: str) -> None:
    files = pictures(tmp_path / "in", *(f"1{n}_cat/{n}.png" for n in range(2)))
    archive = zoo.zip_of(
        tmp_path / "a.zip", {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*.*")}
    )
    service = DatasetService(data)
    for is_new in (True, False):
        if not is_new:
            service.store.create("there")
        before = left(data)
        run_id = service.start_import(
            "cats" if is_new else "there", with_names([str(archive)], ["a.zip"]), is_new=is_new
        )
        with pytest.raises(Cancelled):
            work(Run(data.runs / run_id), stop_at=stage)
        assert [name for name in left(data) if name != ".lock"] == before
    assert service.store.get("there").num_pictures == 0
    assert archive.exists()


def test_a_dropped_folder_keeps_its_captions_when_the_browsers_files_are_gone(data: DataFolder, tmp_path: Path) -> None:
    files, names = dropped(tmp_path, pictures(tmp_path / "train", "10_zib robot/a.png", "5_cat/a.png"))
    service = DatasetService(data)
    run = Run(data.runs / service.start_import("mine", with_names(files, names), is_new=True))
    for file in files:  # as gradio does when the app is closed
        os.remove(file)
    result = work(run)
    store = service.store
    found = {
        store.get(name).title: (store.get(name).repeats, store.scan(name).pictures[0].caption)
        for name in result["datasets"]
    }
    assert found == {"mine zib robot": (10, "of 10_zib robot"), "mine cat": (5, "of 5_cat")}
    assert left(data) == sorted(result["datasets"])
    # Its files are removed with the job, so once more is not possible, and that is said.
    with pytest.raises(DatasetError, match="no longer there"):
        work(create_run(data, "import", "t", run.config()))


def test_a_loose_file_keeps_the_name_that_its_user_gave_it(data: DataFolder, tmp_path: Path) -> None:
    # Browsers send a quote in a name as %22, and gradio keeps the copy under that.
    for ending in ("png", "txt"):
        pictures(tmp_path / "web", "a.png")
        os.rename(tmp_path / "web" / f"a.{ending}", tmp_path / "web" / f"say %22hi%22.{ending}")
    files = [str(tmp_path / "web" / f"say %22hi%22.{ending}") for ending in ("png", "txt")]
    service = DatasetService(data)
    names = ['say "hi".png', 'say "hi".txt']
    work(Run(data.runs / service.start_import("mine", with_names(files, names), is_new=True)))
    (picture,) = service.store.scan("mine").pictures
    assert (picture.name, picture.caption) == ("say _hi_.png", "of web")


@pytest.mark.parametrize(
    ("name", "is_new", "message"),
    [
        (" ", True, "needs a name"),
        ("There", True, "already"),
        ("gone", False, "no data set"),
        ("linked", False, "made here"),
    ],
)
def test_what_can_be_seen_is_refused_at_once(
    data: DataFolder, tmp_path: Path, name: str, is_new: bool, message: str
) -> None:
    service = DatasetService(data)
    service.store.create("There")
    service.store.link(pictures(tmp_path / "linked", "a.png"))
    with pytest.raises(InkwashError, match=message):
        service.start_import(name, [tmp_path / "linked" / "a.png"], is_new=is_new)
    assert not data.runs.exists()
    assert not (data.cache / "dropped").exists()


def test_dropped_files_of_a_killed_job_go_after_a_day_and_nothing_else_does(data: DataFolder, tmp_path: Path) -> None:
    picture = pictures(tmp_path / "in", "a.png") / "a.png"
    (kept,) = keep_dropped(data, [picture])
    folder = Path(kept.path).parents[1]
    assert sweep_dropped(data) == []
    os.utime(folder, (time.time() - 90_000,) * 2)
    assert sweep_dropped(data) == [folder]
    # Settings that name other places remove nothing, whatever they look like.
    precious = data.cache / "dropped" / ".." / "precious" / "a.png"
    precious.resolve().parent.mkdir(parents=True)
    zoo.good(precious.resolve(), seed=1)
    work(import_run(data, "ink", precious, picture))
    assert precious.resolve().is_file()
    assert picture.is_file()


def test_a_runs_data_set_is_made_anew_by_a_job_or_not_at_all(
    data: DataFolder, store: DatasetStore, tmp_path: Path
) -> None:
    store.create_from("ink", [pictures(tmp_path / "in", "a.png", "b.png")])
    trained = create_run(data, "train", "first", {})
    write_versions(trained.folder, [current_version(store, "ink")])
    config = {"dataset": "ink", "run": trained.id, "new_name": "copy"}
    with pytest.raises(DatasetError, match="already"):
        start_restoring(data, build_restore_config({**config, "new_name": "ink"}))
    with pytest.raises(Cancelled):
        work(start_restoring(data, build_restore_config(config)), restore, stop_at="Copying pictures")
    assert left(data) == ["ink"]
    result = work(start_restoring(data, build_restore_config(config)), restore)
    assert (result["datasets"], result["summary"]) == (["copy"], "2 pictures are as they were in that run.")
    assert [picture.caption for picture in store.scan("copy").pictures] == ["of in", "of in"]


def test_its_process_loads_neither_torch_nor_gradio() -> None:
    code = "import sys, trainer.worker, trainer.dataset.bring_job; print({'torch', 'gradio', 'diffusers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
