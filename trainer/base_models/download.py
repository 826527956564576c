"""The job that downloads a base model or a captioner's model: the only one that uses the network, and only this once, because the user asked."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from trainer.base_models.hub import download_files, download_model
from trainer.captioners.models import NEEDS
from trainer.config.download import DownloadConfig
from trainer.config.loading import build_download_config
from trainer.dataset.cutout import WANTED as CUTTER
from trainer.events import Started
from trainer.jobs import JobContext, enqueue
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, create_run

_WANTED = {**{name: needs.wanted() for name, needs in NEEDS.items()}, "segmentation": CUTTER}
"""What is fetched, by the purpose of what is no base model."""


def start_download(data: DataFolder, model_id: str, variant: str, purpose: str = "base_model") -> Run:
    """Begin to fetch a model as a job of its own; `purpose` as in DownloadConfig. Raises ConfigError: it is no id."""
    config = build_download_config({"model_id": model_id, "variant": variant, "purpose": purpose})
    run = create_run(data, "download", config.model_id, config.model_dump(mode="json"))
    enqueue(run, data)
    return run


def download(context: JobContext) -> dict[str, Any]:
    """Fetch the model of the run's settings into the Hugging Face cache. Returns its id and folder.

    Raises: Cancelled, ModelFileError, ResourceError.
    """
    config = DownloadConfig.model_validate(context.run.config())
    context.emit(Started(pid=os.getpid()))
    context.stage("Asking for the list of files")
    progress = partial(StageProgress(context, "bytes"), "Downloading")
    if config.purpose == "base_model":
        folder = download_model(config.model_id, variant=config.variant, progress=progress)
    else:
        folder = download_files(config.model_id, _WANTED[config.purpose], progress)
    return {"model": config.model_id, "folder": str(folder)}
