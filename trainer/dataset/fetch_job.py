"""The job that fetches pictures: it uses the network because the user asked for these addresses."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.fetch import FetchConfig
from trainer.config.loading import build_fetch_config
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.fetching import FetchLimits, fetch_picture
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError, Finding
from trainer.events import Started, Warned
from trainer.jobs import JobContext, enqueue
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, create_run

_SHOWN = 20


def start_fetch(data: DataFolder, dataset: str, addresses: Sequence[str], *, allow_private: bool = False) -> Run:
    """Begin to fetch pictures as a job of its own. Raises ConfigError: an address cannot be fetched; DatasetError."""
    values = {"dataset": dataset, "addresses": list(addresses), "allow_private": allow_private}
    return begin_fetch(data, build_fetch_config(values))


def begin_fetch(data: DataFolder, config: FetchConfig) -> Run:
    """`start_fetch` with all its settings. Raises DatasetError."""
    store = DatasetStore(data)
    if _existing(store, config.dataset) is None:
        store.new_name(config.dataset)  # before anything is fetched for it
    run = create_run(data, "fetch", f"Pictures for {config.dataset}", config.model_dump(mode="json"))
    enqueue(run, data)
    return run


def fetch(context: JobContext) -> dict[str, Any]:
    """Fetch the pictures of the run's settings into their data set. Those that cannot be had are named and passed over.

    Each picture is kept in the cache until all are there, so that a fetch that was cancelled goes on where it was when it is
    started again.

    Returns: dataset, is_new, added, failed. Raises: DatasetError: none could be had. Cancelled, ResourceError.
    """
    config = FetchConfig.model_validate(context.run.config())
    data = context.run.data_folder()
    context.emit(Started(pid=os.getpid()))
    limits = FetchLimits(config.max_mb * 1_000_000, config.max_seconds, config.allow_private)
    progress, addresses = StageProgress(context), list(dict.fromkeys(config.addresses))
    paths, failed = list[Path](), list[Finding]()
    for done, address in enumerate(addresses):
        progress("Fetching pictures", done, len(addresses))
        folder = _folder(data, address)
        found = next(iter(sorted(folder.glob("[!.]*"))), None) if folder.is_dir() else None
        try:
            paths.append(found or fetch_picture(address, folder, limits, context.check_stop))
        except DatasetError as failure:
            failed.append(Finding(address, failure.message))
    progress("Fetching pictures", len(addresses), len(addresses))
    if not paths:
        raise DatasetError("None of the pictures could be fetched.", findings=failed)
    for finding in failed[:_SHOWN]:
        context.emit(Warned(message=f"Not fetched: {finding}"))
    if len(failed) > _SHOWN:
        context.emit(Warned(message=f"… and {len(failed) - _SHOWN} more could not be fetched."))
    store = DatasetStore(data)
    info = _existing(store, config.dataset)
    is_new = info is None
    if info is None:
        info, report = store.create_from(config.dataset, paths)
    else:
        report = store.add_files(info.name, paths)
    for path in paths:
        shutil.rmtree(path.parent, ignore_errors=True)
    return {"dataset": info.name, "is_new": is_new, "added": len(report.added), "failed": len(failed)}


def _folder(data: DataFolder, address: str) -> Path:
    return data.cache / "fetched" / hashlib.sha256(address.encode()).hexdigest()[:32]


def _existing(store: DatasetStore, name: str) -> DatasetInfo | None:
    """The data set that is meant, by its name or its title. Raises DatasetError: nothing can be added to it."""
    info = next((info for info in store.list() if name in (info.name, info.title)), None)
    return None if info is None else store.require_own(info.name)[0]
