"""The job that captions a data set: pictures to captions, and these into the data set as one change that can be undone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.captioners.captioner import Description, subject_of
from trainer.captioners.models import find_model, require_runtime
from trainer.captioners.notes import Noted, Notes
from trainer.captioners.registry import CAPTIONERS, load_captioner
from trainer.captioners.wording import Wording
from trainer.config.caption import NEEDS_MODEL, CaptionConfig
from trainer.config.loading import build_caption_config
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError
from trainer.events import Started, Warned
from trainer.failures import Failures
from trainer.jobs import JobContext, enqueue
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, create_run

_SHOWN = 3


def start_captioning(data: DataFolder, config: CaptionConfig) -> Run:
    """Put a captioning into the queue. A folder of the user's is linked first; it is only read.

    Raises: DatasetError: there is no such data set, or nothing in it to be captioned. ModelFileError, ResourceError: the
        model or the library that it needs is not there.
    """
    store = DatasetStore(data)
    info = store.get(config.dataset)
    if info.record is None:
        info = store.link(info.folder)
    if not chosen(store.scan(info.name).usable, config):
        raise DatasetError(
            "There is nothing to caption in this data set.",
            where=info.title,
            fix="Every picture has a caption: overwrite them, or append to them."
            if info.num_pictures
            else "Add pictures first.",
        )
    asked = config.model_copy(update={"dataset": info.name, "model": _checked_model(config)})
    what = "Try" if config.preview else "Caption"
    title = f"{what} {info.title} ({_who(config)})"
    run = create_run(data, "caption", title, asked.model_dump(mode="json"))
    enqueue(run, data)
    return run


def _checked_model(config: CaptionConfig) -> str:
    """The model as the job finds it, which works in another folder. Raises ModelFileError, ResourceError: see `find_model`."""
    if config.captioner not in NEEDS_MODEL:
        return config.model
    find_model(config.captioner, config.model)
    if config.captioner == "tagger":
        require_runtime()
    folder = Path(config.model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else config.model


def chosen(pictures: Sequence[PictureFacts], config: CaptionConfig) -> list[PictureFacts]:
    """The pictures that get a caption: of a preview a few, spread over all of them."""
    wanted = [facts for facts in pictures if config.existing != "only_empty" or not facts.caption]
    if not config.preview or len(wanted) <= config.preview:
        return wanted
    return [wanted[index * len(wanted) // config.preview] for index in range(config.preview)]


def caption(context: JobContext) -> dict[str, Any]:
    """Caption what the run's settings say. What was captioned before a stop, a fault or a crash is kept, and not done again.

    A picture that cannot be captioned is told and passed over; where three in a row cannot, the run ends. A resumed one begins
    with the others.

    Returns: `dataset`, `captioned` (how many), `unchanged` (where there was nothing to say), `failed` (how many could not be
        captioned), `summary`, `captions` (all of a preview, else the first few, each with `picture`, `before` and `caption`).
    Raises: DatasetError, ModelFileError, ResourceError: as their messages say. Cancelled: the user stopped.
    """
    config = build_caption_config(context.run.config())
    store = DatasetStore(context.run.data_folder())
    context.emit(Started(pid=os.getpid()))
    info = store.get(config.dataset)
    scan = store.scan(info.name, progress=lambda done, total: context.check_stop())
    work = _Captioning(context, config, store, info)
    try:
        work.describe(scan.usable)
    finally:
        num_kept = 0 if config.preview else work.keep()
    return work.result(num_kept)


class _Captioning:
    def __init__(self, context: JobContext, config: CaptionConfig, store: DatasetStore, info: DatasetInfo) -> None:
        self._context, self._config, self._store, self._info = context, config, store, info
        self._notes = Notes(context.run.folder)
        self._wording = Wording(config, info.trigger_word)

    def describe(self, pictures: Sequence[PictureFacts]) -> None:
        """Caption all that are chosen and not done yet. Raises InkwashError."""
        waiting = [facts for facts in chosen(pictures, self._config) if facts.name not in self._notes.done]
        if not waiting:
            return
        self._context.stage("Loading the captioner")
        captioner = load_captioner(self._config, self._context.check_stop)

        def describe(facts: PictureFacts) -> Description:
            return captioner.describe(subject_of(facts))

        progress = StageProgress(self._context)
        first, total = len(self._notes.done), len(self._notes.done) + len(waiting)
        progress("Captioning", first, total)
        failures = Failures(lambda message: self._context.emit(Warned(message=message)))
        had_failed = set(self._notes.failed)
        # Those that failed before come last: nothing behind them shall wait for them for ever.
        waiting.sort(key=lambda facts: facts.name in had_failed)
        try:
            for number, facts in enumerate(waiting, first + 1):
                said = failures.attempt(describe, facts, again=facts.name in had_failed)
                if said is not None:
                    before = "\n".join(facts.captions)
                    self._notes.add(Noted(facts.name, before, self._wording.caption(said, facts.name, before)))
                progress("Captioning", number, total)
        finally:
            self._notes.fail(failures.names)
        failures.end()

    def keep(self) -> int:
        """Put what is done into the data set, as one change; returns how many pictures changed.

        What the user wrote or took out in the meantime stays as it is.
        """
        waiting = {noted.picture: noted for noted in self._notes.open.values() if noted.caption}
        if not waiting:
            return 0
        now = {facts.name: "\n".join(facts.captions) for facts in self._store.scan(self._info.name).pictures}
        wanted = {name: noted.caption.split("\n") for name, noted in waiting.items() if now.get(name) == noted.before}
        if wanted:
            self._store.write_captions(self._info.name, wanted, _title(len(wanted), self._config))
        if len(wanted) < len(waiting):
            kept = len(waiting) - len(wanted)
            message = f"{kept} pictures were changed by hand in the meantime, and stay as they are."
            self._context.emit(Warned(message=message))
        self._notes.keep()
        return len(wanted)

    def result(self, num_kept: int) -> dict[str, Any]:
        """What the job reports."""
        noted = list(self._notes.done.values())
        silent = sum(not entry.caption for entry in noted)
        shown = [entry for entry in noted if entry.caption or self._config.preview]
        what = "tried; nothing is changed" if self._config.preview else "captioned"
        count = len(noted) if self._config.preview else num_kept
        failed = len(self._notes.failed)
        rest = f", {failed} could not be captioned" if failed else ""
        return {
            "dataset": self._info.name,
            "captioned": num_kept,
            "unchanged": silent,
            "failed": failed,
            "summary": f"{count} {'picture' if count == 1 else 'pictures'} {what}{rest}",
            "captions": [vars(entry) for entry in (shown if self._config.preview else shown[:_SHOWN])],
        }


def _who(config: CaptionConfig) -> str:
    return CAPTIONERS[config.captioner].title.partition(":")[0]


def _title(number: int, config: CaptionConfig) -> str:
    done = "Appended to" if config.existing == "append" else "Captioned"
    return f"{done} {number} {'picture' if number == 1 else 'pictures'} ({_who(config)})"
