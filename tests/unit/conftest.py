"""What several files of unit tests begin with; a file that needs it otherwise has its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.dataset.store import DatasetStore
from trainer.paths import DataFolder


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """An empty data folder."""
    return DataFolder(tmp_path / "data")


@pytest.fixture
def store(data: DataFolder) -> DatasetStore:
    """Its data sets."""
    return DatasetStore(data)
