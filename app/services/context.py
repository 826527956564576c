"""What every tab is given: the data folder and the services on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.services.jobs import JobService
from app.services.settings import SettingsStore
from trainer.paths import DataFolder


@dataclass(frozen=True)
class Services:
    """The data folder of this app and what the tabs share. A tab makes further services that it needs from `data`."""

    data: DataFolder
    jobs: JobService = field(init=False)
    settings: SettingsStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", JobService(self.data))
        object.__setattr__(self, "settings", SettingsStore(self.data))
