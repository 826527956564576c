"""Pivotal tuning from training to the picture: what a preview shows is what the file makes, and a death changes no byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.events import Event, StepDone
from trainer.jobs import JobContext
from trainer.lora_files.inspect import inspect_lora
from trainer.paths import DataFolder
from trainer.runs import create_run
from trainer.sampling import job

STEPS = 4
PROMPT = "a (zib:1.2) house"
CASES: dict[str, dict[str, Any]] = {
    "with a lora": {"adapter": {"embedding": {"num_vectors": 2}, "text_encoder": {"rank": 2}}},
    "each layer, in phases, averaged": {
        "adapter": {"embedding": {"num_vectors": 2, "per_layer": True, "phase": "first", "stop_share": 0.75}},
        "training": {"ema_decay": 0.5},
    },
    "alone": {"adapter": {"unet": {"rank": 0}, "embedding": {"num_vectors": 3, "norm_pull": 0.1}}},
    "adalora": {
        "adapter": {"method": "adalora", "adalora": {"every": 1}, "embedding": {"num_vectors": 1, "phase": "first"}}
    },
}


class Died(BaseException):
    """Stands for the death of the process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pivotal")
    make_pictures(folder / "pictures", 3)
    make_tiny_model(folder / "sd1")
    make_tiny_model(folder / "sdxl", family="sdxl")
    yield folder
    job.release()


def settings_of(folder: Path, family: str, changes: dict[str, Any]) -> dict[str, Any]:
    common = {
        "data": {"resolution": 32},
        "optimizer": {"embedding_learning_rate": 0.1, "unet_learning_rate": 1e-2},
        "training": {"steps": STEPS, "batch_size": 1},
        "preview": {"prompts": [PROMPT], "num_inference_steps": 2},
    }
    return tiny_settings(folder / family, folder / "pictures", common, changes)


def looks_like(one: Image.Image, other: Image.Image) -> bool:
    """Whether no colour is off by more than one of 255: training and generation add up in another order, and processors round otherwise."""
    return all(high <= 1 for _, high in ImageChops.difference(one, other).getextrema())


def generated(data: DataFolder, base: Path, stack: list[str]) -> Image.Image:
    settings = {
        **{"base": str(base), "prompt": PROMPT, "seed": 1234, "loras": [{"file": name} for name in stack]},
        **{"num_inference_steps": 2, "guidance_scale": 1.0, "width": 32, "height": 32},
        **{"sampler": "DPM++ 2M Karras", "precision": "fp32", "device": "cpu"},
    }
    result = job.generate(JobContext(create_run(data, "generate", "test", settings), lambda event: None))
    return Image.open(result["pictures"][0]).convert("RGB")


@pytest.mark.parametrize(
    ("family", "case"), [*(("sd1", case) for case in CASES), ("sdxl", "with a lora")], ids=lambda value: value
)
def test_the_file_makes_the_preview_and_a_death_changes_no_byte(
    folder: Path, tmp_path: Path, family: str, case: str
) -> None:
    data, settings = DataFolder(tmp_path / "data"), settings_of(folder, family, CASES[case])
    whole = new_run(data, settings)
    result = train_here(whole)
    name = Path(result["library_path"]).stem
    first, last = (Image.open(whole.samples / f"step-{step:06d}-0.png").convert("RGB") for step in (0, STEPS))
    assert not looks_like(first, last)
    assert looks_like(generated(data, folder / family, [name]), last)
    without = generated(data, folder / family, [])
    # An embedding of the library is known by its name alone; what a LoRA brings is gone with it.
    assert looks_like(without, last) == (case == "alone")

    run = new_run(DataFolder(tmp_path / "other"), settings)

    def die(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == STEPS - 1:
            raise Died

    with pytest.raises(Died):
        train_here(run, die)
    again = train_here(run)
    for path in ("lora", "embedding"):
        expected, found = load_file(result[path]), load_file(again[path])
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_vectors_are_fp32_on_a_bf16_model_and_their_files_say_what_they_are(folder: Path, tmp_path: Path) -> None:
    changes = {**CASES["with a lora"], "model": {"precision": "bf16"}, "save": {"export_every": 2}}
    run = new_run(DataFolder(tmp_path / "data"), settings_of(folder, "sd1", changes))
    result = train_here(run)
    trained = load_file(next(run.checkpoints.glob("step-*4")) / "adapter.safetensors")["embedding.text_encoder"]
    assert trained.dtype == torch.float32
    assert torch.equal(load_file(result["embedding"])["emb_params"], trained)
    files = {path.relative_to(run.lora).as_posix() for path in run.lora.rglob("*.safetensors")}
    assert files == {
        *("test.safetensors", "test-step000002.safetensors"),
        *("embeddings/zib.safetensors", "embeddings/zib-step000002.safetensors"),
    }
    info = inspect_lora(Path(result["lora"]))
    assert (info.embeddings, info.trigger_words, info.num_vectors) == (("zib",), ("zib",), 2)
    assert "inkwash.embedding" in info.metadata
