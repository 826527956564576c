"""What several files of unit tests begin with; a file that needs it otherwise has its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prepare_pictures import make_pictures
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


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A folder of pictures of several shapes."""
    return make_pictures(tmp_path / "pictures")


@pytest.fixture
def linked(store: DatasetStore, shapes: Path) -> DatasetStore:
    """The data sets, with that folder as `pictures`."""
    store.link(shapes)
    return store
