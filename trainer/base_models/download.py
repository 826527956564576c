"""The job that downloads a base model: the only one that uses the network, and only this once, because the user asked."""

from __future__ import annotations

import os
import time
from typing import Any

from trainer.base_models.hub import download_model
from trainer.config.download import DownloadConfig
from trainer.events import Started
from trainer.jobs import JobContext

_REPORT_SECONDS = 0.5


def download(context: JobContext) -> dict[str, Any]:
    """Fetch the model of the run's settings into the Hugging Face cache. Returns its id and folder.

    Raises: Cancelled, ModelFileError, ResourceError.
    """

    config = DownloadConfig.model_validate(context.run.config())
    context.emit(Started(pid=os.getpid()))
    context.stage("Asking for the list of files")
    started, first, reported = time.monotonic(), -1, 0.0

    def progress(done: int, total: int) -> None:
        nonlocal first, reported
        context.check_stop()
        now = time.monotonic()
        if first < 0:
            first = done
        if now - reported >= _REPORT_SECONDS or done == total:
            reported = now
            # What a download before this one had fetched did not take any of this time.
            eta = (now - started) / (done - first) * (total - done) if done > first else None
            context.stage("Downloading", done, total, eta, "bytes")

    folder = download_model(config.model_id, variant=config.variant, progress=progress)
    return {"model": config.model_id, "folder": str(folder)}
