"""BLIP and Florence-2 through their real loading code, on tiny random models; and what of strangers' folders is never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_captioners import make_blip, make_florence2, with_own_code
from trainer.captioners.captioner import Subject
from trainer.captioners.registry import load_captioner
from trainer.config.loading import build_caption_config
from trainer.errors import ModelFileError

RED = Subject("red.png", Image.new("RGB", (40, 30), (255, 0, 0)))


def say(captioner: str, folder: Path, **settings: Any) -> str:
    values = {"dataset": "set", "captioner": captioner, "model": str(folder), captioner: settings}
    return load_captioner(build_caption_config(values), lambda: None).describe(RED).text


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def florence2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence2(tmp_path_factory.mktemp("florence2"))


def test_blip_says_words_of_its_vocabulary_and_goes_on_from_a_beginning(blip: Path) -> None:
    said = say("blip", blip, max_new_tokens=5, num_beams=1)
    assert said.split()
    assert len(said.split()) <= 6
    assert set(said.split()) <= {"a", "an", "the", "of", "on", "in", "red", "blue", "cat", "dog", "house", "tree"}
    assert say("blip", blip, max_new_tokens=5, prompt="a red house").startswith("a red house")
    assert say("blip", blip, max_new_tokens=5, num_beams=1) == said, "nothing is drawn at random"


def test_florence_2_is_asked_for_the_length_that_was_chosen(florence2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Florence2Processor

    asked: list[str] = []
    real = Florence2Processor._construct_prompts

    def noted(self: Any, text: Any) -> list[str]:
        prompts = real(self, text)
        asked.extend(prompts)
        return prompts

    monkeypatch.setattr(Florence2Processor, "_construct_prompts", noted)
    assert len(say("florence2", florence2, max_new_tokens=6, num_beams=2)) <= 7
    say("florence2", florence2, max_new_tokens=6, detail="caption")
    assert asked == ["Describe in detail what is shown in the image.", "What does the image describe?"]


def test_code_in_a_models_folder_is_not_run(tmp_path: Path) -> None:
    folder = with_own_code(make_blip(tmp_path / "model"))
    say("blip", folder, max_new_tokens=5)
    assert not (folder / "ran").exists()


def test_a_model_of_another_kind_or_without_its_parts_is_a_sentence(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="of the type 'blip'"):
        say("florence2", blip)
    folder = make_blip(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelFileError, match="BLIP model cannot be loaded"):
        say("blip", folder)
