"""What trainings in these tests start from: a base model of random weights, pictures, and a data folder for each file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures
from trainer.paths import DataFolder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of Stable Diffusion 1.x's kind."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures with captions."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """A data folder."""
    return DataFolder(tmp_path_factory.mktemp("data"))
