"""What the Prepare section and its commands say, without a browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.services.dataset_prepare import TRAIN_FORM, DatasetPrepareService, matching
from app.services.settings import SettingsStore
from tests.prepare_pictures import make_pictures
from trainer.cli.main import main
from trainer.errors import ConfigError, DatasetError
from trainer.paths import DataFolder


@pytest.fixture
def service(data: DataFolder, tmp_path: Path) -> DatasetPrepareService:
    service = DatasetPrepareService(data, SettingsStore(data))
    service.store.link(make_pictures(tmp_path / "pictures"))
    return service


def test_the_settings_are_those_of_the_train_form_or_of_a_preset(
    service: DatasetPrepareService, data: DataFolder
) -> None:
    assert service.config(TRAIN_FORM).resolution == 512
    settings = SettingsStore(data)
    settings.keep("train-form", {"data.resolution": 96, "data.buckets": False, "data.dataset": "x", "note": "y"})
    form = DatasetPrepareService(data, settings)
    assert (form.config(TRAIN_FORM).resolution, form.config(TRAIN_FORM).buckets) == (96, False)
    name = service.sources()[1][1]
    assert service.config(name).resolution > 0
    settings.keep("train-form", {"data.resolution": 96, "data.bucket_step": 128})
    with pytest.raises(ConfigError):
        form.config(TRAIN_FORM)


def test_a_picture_is_shown_as_it_is_trained_and_changes_with_its_crop(
    service: DatasetPrepareService, data: DataFolder
) -> None:
    settings = SettingsStore(data)
    settings.keep("train-form", {"data.resolution": 64, "data.bucket_step": 16})
    service = DatasetPrepareService(data, settings)

    def shown() -> np.ndarray:
        found = service.picture(service.overview("pictures", service.config(TRAIN_FORM)), "wide.png")
        assert found is not None
        with Image.open(found.whole) as whole, Image.open(found.trained) as trained:
            assert whole.size == (200, 100)
            assert np.array_equal(np.asarray(trained), np.asarray(found.cut.picture()))
            return np.asarray(trained)

    before = shown()
    assert service.set_crop("pictures", "wide.png", (0, 0, 100, 100))
    assert not service.set_crop("pictures", "wide.png", (0, 0, 100, 100))
    assert not np.array_equal(before, shown())
    service.store.undo("pictures")
    assert np.array_equal(before, shown())
    with pytest.raises(DatasetError, match="not complete"):
        service.set_crop("pictures", "wide.png", (0, None, 1, 1))
    overview = service.overview("pictures", service.config(TRAIN_FORM))
    assert [cut.facts.name for cut in matching(overview.cuts, "WI")] == ["wide.png"]
    assert "5 pictures in" in overview.summary


def test_the_commands_crop_preview_and_take_back(
    service: DatasetPrepareService, data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main(["dataset", *words, "--data-dir", str(data.root)])
        return code, capsys.readouterr().out

    code, out = run("crops", "pictures", "--crop", "wide.png", "100", "0", "200", "100", "--json")
    assert (code, json.loads(out)) == (0, {"crops": {"wide.png": [100, 0, 200, 100]}})
    folder = tmp_path / "as trained"
    code, out = run("preview", "pictures", "--resolution", "64", "--pictures", str(folder), "--json")
    found = {entry["picture"]: entry for entry in json.loads(out)["pictures"]}
    assert (found["wide.png"]["size"], found["wide.png"]["box"]) == ([64, 64], [100, 0, 200, 100])
    with (
        Image.open(next(folder.glob("*wide 64x64.png"))) as written,
        Image.open(tmp_path / "pictures/wide.png") as all_,
    ):
        expected = all_.convert("RGB").crop((100, 0, 200, 100)).resize((64, 64), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(written), np.asarray(expected))
    assert run("preview", "pictures", "--pictures", str(folder))[0] == 3  # not empty: nothing is overwritten
    assert "64 x 64" in run("preview", "pictures", "--resolution", "64")[1]
    code, out = run("crops", "pictures", "--undo")
    assert (code, "Crop of wide.png: taken back." in out) == (0, True)
    assert json.loads(run("crops", "pictures", "--json")[1]) == {"crops": {}}
    assert run("crops", "pictures", "--crop", "wide.png", "0", "0", "900", "100")[0] == 3
