"""The jobs that bring pictures in: they go on while the page is closed, and leave nothing where they are cancelled.

A browser's files are kept by gradio only as long as the app is open, so they are linked into a folder of ours first.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.config.bring import BringConfig, BringSource, RestoreConfig
from trainer.dataset.archives import safe_file_name
from trainer.dataset.bringing import bring_in
from trainer.dataset.dropped import Dropped as DroppedFile
from trainer.dataset.dropped import Source, as_dropped
from trainer.dataset.restoring import restore_as_new, version_of_run
from trainer.dataset.store import DatasetStore, checked_trigger_word
from trainer.errors import DatasetError, Finding
from trainer.events import Started
from trainer.files import disk_errors, is_inside
from trainer.jobs import JobContext, enqueue
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, create_run

_TOLD = 200
_KEPT_SECONDS = 24 * 3600
"""How long dropped files wait for a job that was killed to be started again."""


def start_bringing(data: DataFolder, config: BringConfig) -> Run:
    """Begin to copy pictures into a data set as a job of its own. What can be seen to be wrong is refused at once.

    Raises: DatasetError: the name is empty or taken, a source is missing, or the data set is not ours to add to.
    """
    check_bringing(data, config.dataset, is_new=config.is_new, trigger_word=config.trigger_word)
    for source in config.sources:
        if not Path(source.path).expanduser().exists():
            raise DatasetError("This file is not there.", where=source.path, fix="Check the path.")
    return _start(data, "import", f"Pictures for {config.dataset}", config)


def check_bringing(data: DataFolder, name: str, *, is_new: bool, trigger_word: str = "") -> None:
    """Raises DatasetError: the name is empty or taken, the trigger word too long, or the data set not ours to add to."""
    store = DatasetStore(data)
    if is_new:
        store.new_name(name)
        checked_trigger_word(trigger_word)
    else:
        store.require_own(name)


def start_restoring(data: DataFolder, config: RestoreConfig) -> Run:
    """Begin to make a data set of what a run was trained on, as a job of its own.

    Raises: DatasetError: the name is empty or taken, or the run was not trained on that data set. RunError: there is no such run.
    """
    store = DatasetStore(data)
    store.new_name(config.new_name)
    version_of_run(store, data, config.dataset, config.run)
    return _start(data, "restore", f"{config.new_name}, as in {config.run}", config)


def _start(data: DataFolder, kind: str, title: str, config: BringConfig | RestoreConfig) -> Run:
    run = create_run(data, kind, title, config.model_dump(mode="json"))
    enqueue(run, data)
    return run


def bring(context: JobContext) -> dict[str, Any]:
    """Copy pictures into the data set of the run's settings; all of them or, after an error or a cancel, none.

    Returns: datasets, summary, left_out, num_left_out. Raises: DatasetError, ResourceError, Cancelled.
    """
    config = BringConfig.model_validate(context.run.config())
    data = context.run.data_folder()
    context.emit(Started(pid=os.getpid()))
    folders = _kept_folders(data, config.sources)
    try:
        if not all(folder.is_dir() for folder in folders):
            raise DatasetError("What was dropped is no longer there.", fix="Drop it again in the Dataset tab.")
        store, progress = DatasetStore(data), StageProgress(context)
        sources: list[Source] = [DroppedFile(Path(one.path).expanduser(), one.name) for one in config.sources]
        if not config.is_new:
            report = store.add_files(config.dataset, sources, progress)
            return _told([config.dataset], report.summary(), report.left_out)
        brought = bring_in(store, data, config.dataset, sources, trigger_word=config.trigger_word, progress=progress)
        return _told([info.name for info in brought.sets], brought.summary(), brought.left_out)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def restore(context: JobContext) -> dict[str, Any]:
    """Make a data set of what a run was trained on; whole or, after an error or a cancel, not at all.

    Returns: datasets, summary, left_out, num_left_out. Raises: DatasetError, RunError, ResourceError, Cancelled.
    """
    config = RestoreConfig.model_validate(context.run.config())
    data = context.run.data_folder()
    context.emit(Started(pid=os.getpid()))
    store = DatasetStore(data)
    version = version_of_run(store, data, config.dataset, config.run)
    restored = restore_as_new(store, data, version, config.new_name, StageProgress(context))
    return _told([restored.name], restored.summary(), restored.problems)


def _told(names: Sequence[str], summary: str, left_out: Sequence[Finding]) -> dict[str, Any]:
    shown = [str(finding) for finding in left_out[:_TOLD]]
    return {"datasets": list(names), "summary": summary, "left_out": shown, "num_left_out": len(left_out)}


def keep_dropped(data: DataFolder, sources: Sequence[Source]) -> list[BringSource]:
    """Put files from a browser where they stay until the job has copied them: links to them, or copies where the disk has none.

    Returns: them as a job's settings, which removes them when it is over. Raises: DatasetError: one is gone. ResourceError.
    """
    sweep_dropped(data)
    folder = _kept(data) / uuid.uuid4().hex
    kept: list[BringSource] = []
    try:
        with disk_errors(folder, "the dropped files"):
            for number, source in enumerate(map(as_dropped, sources)):
                # Each in a folder of its own, as they come: two may have the same name.
                # By the name that its user knows: the browser's copy may have one with %22 where that has a quote.
                name = PurePosixPath(source.name.replace("\\", "/")).name or source.path.name
                place = folder / str(number) / safe_file_name(name)
                place.parent.mkdir(parents=True)
                _link(source.path, place)
                kept.append(BringSource(path=str(place), name=source.name))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return kept


def _link(path: Path, place: Path) -> None:
    if not path.is_file():
        raise DatasetError("A dropped file is gone.", where=path.name, fix="Drop it again.")
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def forget_dropped(data: DataFolder, sources: Sequence[BringSource]) -> None:
    """Remove what `keep_dropped` kept."""
    for folder in _kept_folders(data, sources):
        shutil.rmtree(folder, ignore_errors=True)


def sweep_dropped(data: DataFolder, older_than_seconds: float = _KEPT_SECONDS) -> list[Path]:
    """Remove dropped files whose job was killed a while ago; returns what was removed."""
    old = time.time() - older_than_seconds
    removed = [folder for folder in _kept(data).glob("*") if folder.is_dir() and folder.stat().st_mtime < old]
    for folder in removed:
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def _kept(data: DataFolder) -> Path:
    return data.cache / "dropped"


def _kept_folders(data: DataFolder, sources: Sequence[BringSource]) -> list[Path]:
    """The folders of `keep_dropped` that sources lie in; never another place, whatever the settings say."""
    kept = _kept(data)
    inside = (Path(os.path.normpath(one.path)) for one in sources)
    folders = {kept / path.relative_to(kept).parts[0] for path in inside if path != kept and kept in path.parents}
    return [folder for folder in sorted(folders) if is_inside(folder, kept)]
