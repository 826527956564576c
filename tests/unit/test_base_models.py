"""The list of base models, and why a folder is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import make_tiny_model
from trainer.base_models import describe_base, fingerprint, list_base_models, resolve_base, weight_file
from trainer.errors import ModelFileError
from trainer.paths import PROJECT, DataFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "models" / "mine"))


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder: Path, data: DataFolder) -> str:
    with pytest.raises(ModelFileError) as caught:
        resolve_base(str(folder), data)
    assert caught.value.fix
    return str(caught.value)


def test_a_model_in_the_data_folder_is_found_by_name(folder: Path, data: DataFolder) -> None:
    (folder / "model.toml").write_text('title = "Mine"\nexample_prompts = ["a house"]\ndefault_steps = 7\n')
    info = next(info for info in list_base_models(data) if info.name == "mine")
    assert (info.title, info.resolution, info.default_steps, info.problem) == ("Mine", 64, 7, "")
    assert info.example_prompts == ("a house",)
    assert resolve_base("mine", data) == folder
    assert resolve_base(str(folder), data) == folder


def test_the_own_resolution_follows_from_the_model(tmp_path: Path) -> None:
    assert describe_base(make_tiny_model(tmp_path / "f8", vae_blocks=4, sample_size=8)).resolution == 64
    assert describe_base(make_tiny_model(tmp_path / "f4", vae_blocks=3, sample_size=8)).resolution == 32


def test_a_name_that_is_not_there_lists_those_that_are(folder: Path, data: DataFolder) -> None:
    message = refusal(Path("no-such-model"), data)
    assert "no-such-model" in message
    assert "mine" in message


def test_a_truncated_download_is_named_with_its_sizes(folder: Path, data: DataFolder) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert "cut off" in refusal(folder, data)
    assert "unet/diffusion_pytorch_model.safetensors" in refusal(folder, data)
    assert "cut off" in next(info for info in list_base_models(data) if info.name == "mine").problem


def test_garbage_weights_and_missing_parts_are_all_named_at_once(folder: Path, data: DataFolder) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a safetensors file at all")
    (folder / "text_encoder" / "model.safetensors").unlink()
    shutil.rmtree(folder / "tokenizer")
    message = refusal(folder, data)
    assert all(part in message for part in ("vae/", "text_encoder", "tokenizer"))


def test_pickles_are_refused(folder: Path, data: DataFolder) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "foreign code" in refusal(folder, data)


def test_other_architectures_are_refused_in_words(folder: Path, data: DataFolder) -> None:
    change(folder / "unet" / "config.json", in_channels=8)
    assert "takes 8 channels" in refusal(folder, data)
    change(folder / "unet" / "config.json", in_channels=4, cross_attention_dim=768)
    assert "768" in refusal(folder, data)
    (folder / "text_encoder_2").mkdir()
    assert "tokenizer_2: is missing" in refusal(folder, data)
    (folder / "text_encoder").rename(folder / "no_text_encoder")
    assert "refiner" in refusal(folder, data)
    (folder / "transformer").mkdir()
    assert "not of a family that Inkwash knows" in refusal(folder, data)


def test_a_folder_that_is_no_model_and_a_single_file(tmp_path: Path, data: DataFolder) -> None:
    assert "model_index.json" in refusal(tmp_path, data)
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"x")
    assert "truncated" in refusal(single, data)


def test_a_broken_description_is_a_problem_not_a_crash(folder: Path, data: DataFolder) -> None:
    (folder / "model.toml").write_text("title = [")
    assert "model.toml" in describe_base(folder).problem


def test_half_precision_and_sharded_weights_are_found(folder: Path, data: DataFolder) -> None:
    unet = folder / "unet"
    plain = unet / "diffusion_pytorch_model.safetensors"
    plain.rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    found = weight_file(unet)
    assert found is not None
    assert found.variant == "fp16"
    assert resolve_base(str(folder), data) == folder
    (unet / "diffusion_pytorch_model.fp16.safetensors").rename(unet / "part-1.safetensors")
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    assert "part-2.safetensors: is missing" in refusal(folder, data)


def test_the_fingerprint_follows_weights_and_configuration(folder: Path) -> None:
    first = fingerprint(folder, "vae")
    assert first == fingerprint(folder, "vae")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = fingerprint(folder, "vae")
    change(folder / "vae" / "config.json", scaling_factor=0.9)
    assert len({first, second, fingerprint(folder, "vae")}) == 3


def test_listing_models_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.base_models import list_base_models; "
        "from trainer.paths import DataFolder; list_base_models(DataFolder(Path(sys.argv[1]))); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
