"""The command line as a user calls it: real processes, the embedded model, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from trainer.cli.main import COMMANDS
from trainer.paths import PROJECT


class Inkwash:
    """Runs `python -m trainer` with a data folder of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(
        self, *arguments: str | Path, expect: int = 0, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            cwd=PROJECT,
            env={**os.environ, "INKWASH_DATA": str(self.data)},
        )
        assert result.returncode == expect, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
        return result

    def json(self, *arguments: str | Path, expect: int = 0, timeout: float = 600) -> dict[str, Any]:
        return json.loads(self(*arguments, "--json", expect=expect, timeout=timeout).stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def inkwash(tmp_path_factory: pytest.TempPathFactory) -> Inkwash:
    return Inkwash(tmp_path_factory.mktemp("data") / "数据 one")


@pytest.fixture(scope="session")
def demo(inkwash: Inkwash, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A seventh of the demo's steps: enough for a style that is seen."""
    return inkwash.json("demo", "--steps", "30", "--out", tmp_path_factory.mktemp("demo"))


def quick(*extra: str) -> list[str]:
    """A training run of seconds."""
    return [
        *("--preset", "embedded-quick", "--dataset", "ink-wash", "--training.steps", "4", "--training.batch_size", "2"),
        *("--preview.prompts", "a red house", "--preview.num_inference_steps", "2", "--validation.num_pictures", "2"),
        *extra,
    ]


def test_demo_changes_the_style_and_says_by_how_much(demo: dict[str, Any]) -> None:
    assert set(demo) >= {
        "seconds", "steps", "validation_loss_before", "validation_loss_after",
        "style_distance_before", "style_distance_after", "grid", "lora",
    }  # fmt: skip
    assert demo["style_distance_after"] < 0.8 * demo["style_distance_before"]
    assert demo["validation_loss_after"] < 0.9 * demo["validation_loss_before"]
    with Image.open(demo["grid"]) as grid:
        assert grid.width > 500
    with safe_open(demo["lora"], framework="np") as lora:
        assert all(key.startswith("lora_unet_") for key in lora.keys())  # noqa: SIM118 - not a dict


@pytest.mark.slow
def test_the_whole_demo_halves_the_distance_to_the_style(inkwash: Inkwash) -> None:
    whole = inkwash.json("demo")
    assert whole["style_distance_after"] < 0.5 * whole["style_distance_before"]


@pytest.mark.slow
def test_a_lora_trained_with_learning_rate_zero_leaves_the_style_alone(inkwash: Inkwash) -> None:
    idle = inkwash.json("demo", "--steps", "2", "--learning-rate", "0")
    assert idle["style_distance_after"] == pytest.approx(idle["style_distance_before"], rel=1e-3)


def test_train_reports_what_it_made_and_resume_of_a_finished_run_changes_nothing(
    inkwash: Inkwash, tmp_path: Path
) -> None:
    result = inkwash.json("train", *quick("--save.name", "水墨 test"), "--run", tmp_path / "my run")
    assert set(result) >= {"run", "lora", "steps", "seconds", "validation_loss_first", "validation_loss_last"}
    assert result["steps"] == 4
    assert Path(result["lora"]).name.startswith("水墨 test")
    before = Path(result["lora"]).read_bytes()
    again = inkwash.json("resume", tmp_path / "my run")
    assert again["steps"] == 4
    assert Path(again["lora"]).read_bytes() == before
    assert again["library_path"] == result["library_path"]


def test_generate_same_seed_same_picture_other_weight_other_picture(
    inkwash: Inkwash, demo: dict[str, Any], tmp_path: Path
) -> None:
    common = [
        "--prompt",
        "a red house, on a lake",
        "--seed",
        "5",
        "--num_inference_steps",
        "8",
        "--guidance_scale",
        "4",
    ]
    lora = demo["lora"]
    pictures = {}
    for name, extra in {"base": [], "again": [], "full": ["--lora", lora], "half": ["--lora", f"{lora}:0.5"]}.items():
        result = inkwash.json("generate", *common, *extra, "--out", tmp_path / f"{name}.png")
        assert result["pictures"] == [str(tmp_path / f"{name}.png")]
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures[name] = picture.convert("RGB").tobytes()
    assert pictures["base"] == pictures["again"]
    assert len({pictures["base"], pictures["full"], pictures["half"]}) == 3


def test_inspect_shows_rank_trigger_and_recipe(inkwash: Inkwash, demo: dict[str, Any]) -> None:
    facts = inkwash.json("lora", "inspect", demo["lora"])
    assert "ink wash" in json.dumps(facts["trigger_words"])
    assert facts["changes_unet"] is True
    assert facts["changes_text_encoder"] is False
    assert "inkwash.config" in facts["metadata"]


def test_jobs_lists_and_deletes_to_the_trash(inkwash: Inkwash, demo: dict[str, Any]) -> None:
    jobs = inkwash.json("jobs")["jobs"]
    assert {job["kind"] for job in jobs} >= {"train", "compare"}
    victim = next(job for job in jobs if job["kind"] == "compare")
    inkwash("jobs", "--delete", victim["run"])
    assert victim["run"] not in {job["run"] for job in inkwash.json("jobs")["jobs"]}
    assert (inkwash.data / "trash" / victim["run"]).exists()


def test_detached_run_goes_on_alone_and_stops_when_asked(inkwash: Inkwash) -> None:
    started = inkwash.json("train", *quick("--training.steps", "5000"), "--detach")
    run = Path(started["run"])
    deadline = time.monotonic() + 120
    while '"type":"step"' not in _read(run / "events.jsonl"):
        assert time.monotonic() < deadline, _read(run / "log.txt")
        time.sleep(0.3)
    inkwash("jobs", "--stop", run.name)
    while inkwash.json("jobs", "--show", run.name)["state"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert list((run / "checkpoints").iterdir())


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(inkwash: Inkwash, command: str) -> None:
    text = inkwash(command, "--help").stdout
    assert "examples:" in text
    assert f"inkwash {command}" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--preset", "nonsense"], 2, ["no preset", "embedded-quick"]),
        (["train", "--adapter.unet.rank", "-3", "--dataset", "ink-wash"], 2, ["adapter.unet.rank", "0 to 512"]),
        (["train", "--adapter.unet.rnk", "3"], 2, ["--adapter.unet.rnk"]),
        (["train", "no-such-file.toml"], 2, ["no-such-file.toml"]),
        (["train", *quick("--data.dataset", "no-such-set"), "--dataset", "no-such-set"], 3, ["no-such-set"]),
        (["train", *quick("--model.base", "no-such-model")], 4, ["no-such-model"]),
        (["generate", "--prompt", "x", "--lora", "no-such-lora"], 5, ["no-such-lora"]),
        (["generate", "--prompt", "x", "--width", "61"], 2, ["width", "multiple of 8"]),
        (["resume", "no-such-run"], 7, ["no-such-run", "inkwash jobs"]),
        (["lora", "inspect", "no-such-lora"], 5, ["no-such-lora"]),
    ],
)
def test_mistakes_get_a_sentence_and_an_exit_code(
    inkwash: Inkwash, arguments: list[str], code: int, words: list[str]
) -> None:
    message = inkwash(*arguments, expect=code).stderr
    for word in words:
        assert word in message


def test_empty_folder_and_text_named_png_are_refused_before_time_is_spent(inkwash: Inkwash, tmp_path: Path) -> None:
    empty = tmp_path / "空 folder"
    empty.mkdir()
    assert "picture" in inkwash("train", *quick(), "--dataset", empty, expect=3).stderr
    (empty / "fake.png").write_text("I am a text")
    assert "fake.png" in inkwash("train", *quick(), "--dataset", empty, expect=3).stderr


def test_json_error_is_one_object_in_the_last_line(inkwash: Inkwash) -> None:
    error = inkwash.json("train", "--training.steps", "0", expect=2)["error"]
    assert error["code"] == "config"
    assert error["findings"][0]["where"] == "training.steps"
