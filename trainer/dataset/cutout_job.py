"""Masks by a segmentation model for all pictures of a data set that have none: one change, which can be undone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from trainer.dataset.cutout import find_cutter, load_cutter
from trainer.dataset.painted import MaskEntry, subject_share
from trainer.dataset.preparing import keep_new_mask, set_masks, usable_pictures
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError
from trainer.events import Started, Warned
from trainer.failures import Failures
from trainer.jobs import JobContext, enqueue
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, create_run


class MasksRequest(BaseModel):
    """Masks to be made."""

    model_config = ConfigDict(extra="forbid")

    dataset: Annotated[str, Field(min_length=1)]
    """The data set's name."""
    model: Annotated[str, Field(min_length=1, max_length=1000)]
    """An ONNX file, a folder with one, or the id of a model in the Hugging Face cache."""


def start_masks(data: DataFolder, request: MasksRequest) -> Run:
    """Put the making of masks into the queue.

    Raises: DatasetError: there is no such data set, or all of its pictures have a mask. ModelFileError: the model is not there.
    """
    store = DatasetStore(data)
    info = store.get(request.dataset)
    if all(facts.mask is not None for facts in usable_pictures(store, info.name).values()):
        raise DatasetError(
            "There is no picture without a mask in this data set.",
            where=info.title,
            fix="Take masks away first, or add pictures.",
        )
    model = find_cutter(request.model)
    asked = MasksRequest(dataset=info.name, model=str(model.absolute()))
    run = create_run(data, "masks", f"Masks of {info.title} by {model.name}", asked.model_dump(mode="json"))
    enqueue(run, data)
    return run


def cut(context: JobContext) -> dict[str, Any]:
    """Make the masks that the run's settings ask for. Where it is stopped, those that are made are kept.

    Returns: `dataset`, `summary`.
    Raises: DatasetError, ModelFileError, ResourceError: as their messages say. Cancelled: the user stopped.
    """
    asked = MasksRequest.model_validate(context.run.config())
    context.emit(Started(pid=os.getpid()))
    context.stage("Loading the model")
    progress = StageProgress(context)
    count = make_masks(
        DatasetStore(context.run.data_folder()),
        asked.dataset,
        asked.model,
        lambda done, total: progress("Cutting out", done, total),
        lambda message: context.emit(Warned(message=message)),
    )
    made = "no mask was made: the model saw no subject" if not count else f"{count} masks made"
    return {"dataset": asked.dataset, "summary": made}


def make_masks(
    store: DatasetStore,
    name: str,
    model: str,
    progress: Callable[[int, int], None],
    warn: Callable[[str], object],
) -> int:
    """Masks for all pictures that have none, as one change. What is made when it ends early is kept.

    Args:
        store: the data sets.
        name: the data set.
        model: as `load_cutter` takes it.
        progress: hears how many pictures of how many are done.
        warn: hears of pictures that are passed over, and of those that were given a mask by hand in the meantime, which stays.

    Returns: how many pictures have got one.
    Raises: DatasetError, ModelFileError, ResourceError, and whatever `progress` raises.
    """
    cutter = load_cutter(model)
    without = [facts for facts in usable_pictures(store, name).values() if facts.mask is None]
    entries: dict[str, MaskEntry] = {}
    failures = Failures(warn)

    def look(facts: PictureFacts) -> Image.Image | None:
        return cutter.mask(facts.uncut.open())

    try:
        for done, facts in enumerate(without, start=1):
            mask = failures.attempt(look, facts)
            if mask is not None and subject_share(mask) > 0:
                entries[facts.name] = keep_new_mask(store, name, facts, mask)
            progress(done, len(without))
        failures.end()
    finally:
        count = _keep(store, name, entries, Path(model).name, warn)
    return count


def _keep(
    store: DatasetStore, name: str, entries: Mapping[str, MaskEntry], model: str, warn: Callable[[str], object]
) -> int:
    """Let the masks count, but for pictures that were given one, or left out, in the meantime; returns how many do."""
    now = usable_pictures(store, name) if entries else {}
    kept = {picture: entry for picture, entry in entries.items() if picture in now and now[picture].mask is None}
    if kept:
        set_masks(store, name, kept, f"Masks of {len(kept)} pictures by {model}")
    if len(kept) < len(entries):
        warn(f"{len(entries) - len(kept)} pictures were changed by hand in the meantime, and stay as they are.")
    return len(kept)
