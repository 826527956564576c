"""Masks by a segmentation model: a tiny real ONNX model goes through the real loading code."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.prepare_pictures import make_pictures
from tests.tiny_captioners import _field, _node, _value_info, make_tagger
from trainer.cli.main import main
from trainer.dataset.cutout import Cutter, load_cutter
from trainer.dataset.cutout_job import MasksRequest, cut, make_masks, start_masks
from trainer.dataset.pictures import open_coverage
from trainer.dataset.preparing import set_mask
from trainer.dataset.store import DatasetStore
from trainer.errors import Cancelled, ModelFileError
from trainer.events import Event
from trainer.jobs import JobContext
from trainer.paths import DataFolder

SIDE = 32


def make_cutter(path: Path, *, scale: float = 1.0) -> Path:
    """A model that answers with the red channel, times `scale`, as U²-Net answers: (1, 1, side, side)."""
    weights = struct.pack("<3f", scale, 0.0, 0.0)
    tensor = (
        b"".join(_field(1, size) for size in (1, 3, 1, 1)) + _field(2, 1) + _field(8, "weights") + _field(9, weights)
    )
    graph = _field(1, _node("Conv", ["input", "weights"], "mask")) + _field(2, "tiny") + _field(5, tensor)
    graph += _field(11, _value_info("input", [1, 3, SIDE, SIDE])) + _field(12, _value_info("mask", [1, 1, SIDE, SIDE]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path


def half_red(size: tuple[int, int] = (128, 64)) -> Image.Image:
    image = Image.new("RGB", size, (40, 90, 90))
    image.paste((240, 90, 90), (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_the_mask_lies_where_the_model_sees_the_subject(tmp_path: Path, scale: float) -> None:
    """With 50 the answer is beyond 0 to 1, as that of models without their last sigmoid."""
    mask = load_cutter(str(make_cutter(tmp_path / "model.onnx", scale=scale))).mask(half_red())
    assert mask is not None
    assert (mask.mode, mask.size) == ("L", (128, 64))
    values = np.asarray(mask)
    assert values[:, :56].max() <= 5
    assert values[:, 72:].min() >= 250
    assert load_cutter(str(tmp_path)).mask(Image.new("RGB", (50, 50), (9, 9, 9))) is None  # the same all over


def test_pictures_are_fed_as_the_model_asks(tmp_path: Path) -> None:
    path = make_cutter(tmp_path / "onnx" / "model.onnx")
    config = {"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 1], "size": {"height": 99, "width": 99}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    fed = load_cutter(str(tmp_path))._fed(Image.new("RGB", (10, 10), (255, 0, 51)))
    assert fed.shape == (1, 3, SIDE, SIDE)  # the model's own size comes first
    assert np.allclose(fed[0, :, 0, 0], [0.5, -0.5, -0.3])
    (tmp_path / "preprocessor_config.json").unlink()
    usual = load_cutter(str(path))._fed(Image.new("RGB", (10, 10), (255, 0, 51)))
    assert np.allclose(usual[0, :, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225], atol=1e-5)


def test_what_is_no_such_model_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="cannot be loaded"):
        load_cutter(str(tmp_path / "broken.onnx"))
    with pytest.raises(ModelFileError, match="no segmentation model 'nobody/nothing'"):
        load_cutter("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"no model\.onnx"):
        load_cutter(str(tmp_path / "empty"))
    with pytest.raises(ModelFileError, match=r"not pictures|no mask|could not look"):
        load_cutter(str(make_tagger(tmp_path / "tagger"))).mask(half_red())


def test_the_command_makes_keeps_and_takes_away_masks(
    store: DatasetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_pictures(tmp_path / "pictures")
    half_red().save(folder / "half.png")
    store.link(folder)
    before = sorted(path.name for path in folder.iterdir())

    def run(*words: str) -> dict[str, str]:
        command = ["dataset", "masks", "pictures", *words, "--json", "--data-dir", str(tmp_path / "data")]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)["masks"]

    assert run() == {"wide.png": str(folder / "wide-masklabel.png")}
    made = run("--model", str(make_cutter(tmp_path / "tiny.onnx")))
    assert made["wide.png"] == str(folder / "wide-masklabel.png")  # a mask that is there is kept
    assert np.asarray(open_coverage(Path(made["half.png"])))[:, 72:].min() >= 250
    assert store.history("pictures")[0][-1].title.endswith("pictures by tiny.onnx")
    mask = tmp_path / "mine.png"
    Image.linear_gradient("L").resize((64, 32)).save(mask)
    assert run("--mask", "half.png", str(mask))["half.png"] != made["half.png"]
    assert "half.png" not in run("--unmask", "half.png")
    Image.new("L", (64, 64), 255).save(mask)
    assert main(["dataset", "masks", "pictures", "--mask", "half.png", str(mask), "--data-dir", str(tmp_path / "data")])
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_job_makes_all_masks_as_one_change_and_keeps_them_when_it_is_stopped(
    store: DatasetStore, data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_pictures(tmp_path / "pictures")
    for name in ("half", "other"):
        half_red().save(folder / f"{name}.png")
    (folder / "wide-masklabel.png").unlink()
    store.link(folder)
    monkeypatch.setattr("trainer.dataset.cutout_job.enqueue", lambda run, _data: run.enqueue())
    with pytest.raises(ModelFileError, match="--for segmentation"):
        start_masks(data, MasksRequest(dataset="pictures", model="owner/none"))
    run = start_masks(data, MasksRequest(dataset="pictures", model=str(make_cutter(tmp_path / "tiny.onnx"))))
    changes = len(store.history("pictures")[0])

    events: list[Event] = []
    run.request("stop")
    with pytest.raises(Cancelled):
        cut(JobContext(run, events.append))
    (kept,) = [facts.name for facts in store.scan("pictures").usable if facts.mask is not None]
    assert len(store.history("pictures")[0]) == changes + 1
    run.clear_requests("stop")
    result = cut(JobContext(run, events.append))
    made = [facts.name for facts in store.scan("pictures").usable if facts.mask is not None]
    assert {"half.png", "other.png"} <= set(made)
    assert result["summary"] == f"{len(made) - 1} masks made"
    assert [event.done for event in events if getattr(event, "total", 0)][-1] == len(store.scan("pictures").usable) - 1
    assert len(store.history("pictures")[0]) == changes + 2
    store.undo("pictures")
    assert [facts.name for facts in store.scan("pictures").usable if facts.mask is not None] == [kept]


def test_masks_of_the_user_stay_and_pictures_that_fail_are_passed_over(
    linked: DatasetStore, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_red().save(shapes / "half.png")
    model = str(make_cutter(tmp_path / "tiny.onnx"))
    painted = Image.linear_gradient("L").resize((64, 32))
    warnings: list[str] = []
    real = Cutter.mask

    def mask(self: Cutter, image: Image.Image) -> Image.Image | None:
        if image.size == (123, 77):
            raise ModelFileError("The model could not look at the picture")
        return real(self, image)

    def paint(done: int, total: int) -> None:
        if done == 1:
            set_mask(linked, "pictures", "half.png", painted)
        if done == total - 1:
            raise Cancelled("Stopped.")

    monkeypatch.setattr(Cutter, "mask", mask)
    with pytest.raises(Cancelled):
        make_masks(linked, "pictures", model, paint, warnings.append)
    facts = {each.name: each for each in linked.scan("pictures").usable}
    assert facts["half.png"].mask
    assert open_coverage(facts["half.png"].mask.path).size == (64, 32)
    assert facts["clear.png"].mask
    assert facts["odd.jpg"].mask is None
    assert warnings == [
        "odd.jpg is passed over: The model could not look at the picture",
        "1 pictures were changed by hand in the meantime, and stay as they are.",
    ]
    monkeypatch.setattr(Cutter, "mask", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_masks(linked, "pictures", model, lambda *_: None, warnings.append)
