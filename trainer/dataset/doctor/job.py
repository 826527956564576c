"""The job that measures the pictures of a data set. What the measures mean is judged by whoever shows it, at any time."""

from __future__ import annotations

import os
from typing import Any

from trainer.dataset.doctor.diagnosis import check_dataset
from trainer.dataset.doctor.settings import CheckSettings
from trainer.events import Started
from trainer.jobs import JobContext
from trainer.progress import StageProgress


def check(context: JobContext) -> dict[str, Any]:
    """Check the data set that the run's settings name.

    Returns: `dataset`, `summary` (the verdict in words).
    Raises: InkwashError: as its message says. Cancelled: the user stopped; the next check goes on there.
    """
    asked = context.run.config()
    context.emit(Started(pid=os.getpid()))
    context.check_stop()
    settings = CheckSettings.model_validate(asked.get("settings", {}))
    report = check_dataset(context.run.data_folder(), str(asked["dataset"]), settings, StageProgress(context))
    return {"dataset": asked["dataset"], "summary": report.summary}
