"""What every tab is given: the data folder and the services on it."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.paths import DataFolder


@dataclass(frozen=True)
class Services:
    """The data folder of this app. A tab makes the services that it needs from `data`."""

    data: DataFolder
