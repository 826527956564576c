"""Folders of other programs are used in place: found, told apart, remembered, never written to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tiny_model import make_tiny_model
from trainer.base_models import list_base_models, resolve_base, resolve_trainable, scan
from trainer.base_models.scan import add_model_folder, model_folders, remove_model_folder, scan_models
from trainer.cli.main import main
from trainer.errors import ConfigError, ModelFileError
from trainer.files import file_sha256
from trainer.paths import DataFolder

XL = {
    "model.diffusion_model.input_blocks.0.0.weight": (2, 4, 3, 3),
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (4,),
    "conditioner.embedders.1.model.ln_final.bias": (4,),
    "first_stage_model.encoder.conv_in.bias": (4,),
}
INPAINTING = {**XL, "model.diffusion_model.input_blocks.0.0.weight": (2, 9, 3, 3)}
LORA = {"lora_unet_x.lora_down.weight": (2, 2), "lora_unet_x.lora_up.weight": (2, 2)}


def write(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path, metadata or None)
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture
def install(tmp_path: Path) -> Path:
    """An A1111 folder: its models, and files of other kinds among and beside them."""
    root = tmp_path / "web ui ü"
    models = root / "models" / "Stable-diffusion"
    write(models / "xl" / "noob v.safetensors", {**XL, "v_pred": (), "ztsnr": ()})
    write(models / "fill.safetensors", INPAINTING)
    write(models / "style lora.safetensors", LORA)
    (models / "broken.safetensors").write_bytes(b"x" * 99)
    write(root / "models" / "Lora" / "other.safetensors", LORA)
    return root


def test_models_of_another_program_are_listed_by_what_they_are(data: DataFolder, install: Path) -> None:
    before = sorted(path for path in install.rglob("*"))
    assert add_model_folder(data, install) == install
    add_model_folder(data, install)
    assert model_folders(DataFolder(data.root)) == [install], "remembered once"
    found = {info.name: info for info in list_base_models(data) if not info.is_bundled}
    assert set(found) == {"broken", "fill", "noob v"}, "a LoRA is no base model"
    noob = found["noob v"]
    assert (noob.family, noob.traits.prediction_type, noob.traits.zero_terminal_snr) == ("sdxl", "v_prediction", True)
    assert (noob.precision, noob.resolution, noob.problem) == ("fp16", 1024, "")
    assert noob.label == "noob v (Stable Diffusion XL, predicts v, zero terminal SNR)"
    assert noob.size_bytes == noob.path.stat().st_size
    assert (found["fill"].problem, found["fill"].label) == ("", "fill (Stable Diffusion XL, inpainting)")
    assert "Train with the text-to-image model" in found["fill"].training_problem
    assert not noob.training_problem
    assert found["broken"].problem
    assert resolve_base("noob v", data) == noob.path
    assert resolve_base("fill", data) == found["fill"].path
    with pytest.raises(ModelFileError, match="inpainting"):
        resolve_trainable("fill", data)
    assert sorted(path for path in install.rglob("*")) == before
    remove_model_folder(data, install)
    assert scan_models(data) == []
    with pytest.raises(ConfigError):
        remove_model_folder(data, install)
    with pytest.raises(ConfigError, match="no such folder"):
        add_model_folder(data, install / "nowhere")


def test_unchanged_files_are_not_opened_again(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    for index in range(50):
        write(folder / f"model {index:02d}.safetensors", XL)
    add_model_folder(data, folder)
    first = scan_models(data)
    assert len(first) == 50
    looked: list[Path] = []
    describe = scan.describe_checkpoint

    def counting(path: Path) -> Any:
        looked.append(path)
        return describe(path)

    monkeypatch.setattr(scan, "describe_checkpoint", counting)
    monkeypatch.setattr(scan, "_memory", {})  # as in another process: only the file on the disk is left
    assert scan_models(data) == first
    assert looked == []
    changed = write(folder / "model 07.safetensors", {**XL, "v_pred": (), "extra": (9,)})
    found = {info.name: info for info in scan_models(data)}
    assert looked == [changed]
    assert found["model 07"].traits.prediction_type == "v_prediction"
    changed.unlink()
    assert len(scan_models(data)) == 49
    (data.cache / "base-models.json").write_text("{ damaged")
    monkeypatch.setattr(scan, "_memory", {})
    assert len(scan_models(data)) == 49


def test_links_in_a_circle_end(data: DataFolder, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    write(folder / "one.safetensors", XL)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    add_model_folder(data, folder)
    assert [info.name for info in scan_models(data)] == ["one"]


def test_a_diffusers_folder_among_them_is_one_model(data: DataFolder, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    make_tiny_model(folder / "deep" / "my folder model", family="sdxl")
    add_model_folder(data, folder)
    (info,) = scan_models(data)
    assert (info.name, info.family, info.precision, info.problem) == ("my folder model", "sdxl", "fp32", "")


def test_the_commands(data: DataFolder, install: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, dict[str, Any]]:
        code = main(["model", *words, "--json", "--data-dir", str(data.root)])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    assert run("add-folder", str(install))[1]["folders"] == [str(install)]
    code, listed = run("list")
    assert code == 0
    names = {model["name"]: model for model in listed["models"]}
    assert names["noob v"]["prediction_type"] == "v_prediction"
    code, facts = run("inspect", "noob v")
    assert code == 0
    assert facts["sha256"] == file_sha256(Path(facts["path"]))
    assert facts["short_hash"] == facts["sha256"][:10]
    code, fill = run("inspect", "fill")
    assert (code, fill["is_inpainting"]) == (0, True)
    assert "cannot be trained" in fill["training_problem"]
    assert run("inspect", "broken")[0] == 4
    assert run("list")[1]["models"][-1]["sha256"] == facts["sha256"], "a hash is kept"
    assert run("inspect")[0] == 2
    code, error = run("inspect", "someone/not-downloaded")
    assert code == 4
    assert "inkwash model download someone/not-downloaded" in error["error"]["fix"]
