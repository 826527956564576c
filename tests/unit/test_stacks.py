"""Stacks of LoRAs under a name, as files that are shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.test_lora_tags import put
from trainer.cli.main import main
from trainer.config.generate import StackedLora
from trainer.errors import ConfigError
from trainer.paths import DataFolder
from trainer.stacks import delete_stack, import_stack, list_stacks, load_stack, save_stack

INK = {"unet_weight": 0.8, "text_encoder_weight": -0.5, "blocks": "MIDD", "start": 0.2, "end": 0.8}


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "mine")
    put(folder, "ink", 1)
    put(folder, "styles/oil", 2)
    return folder


def loras(data: DataFolder) -> list[StackedLora]:
    return [
        StackedLora.model_validate({"file": str(data.loras / "ink.safetensors"), **INK}),
        StackedLora(file="styles/oil", is_on=False),
    ]


def test_a_stack_comes_back_as_it_was_and_holds_no_path(data: DataFolder) -> None:
    path = save_stack(data, "evening", loras(data))
    assert list_stacks(data) == ["evening"]
    stack = load_stack(data, "evening")
    assert stack.loras == (
        StackedLora.model_validate({"file": "ink", **INK}),
        StackedLora(file="styles/oil", is_on=False),
    )
    assert (stack.missing, stack.notes) == ((), ())
    assert str(data.root) not in path.read_text()


def test_another_library_finds_loras_by_hash_and_names_what_is_missing(data: DataFolder, tmp_path: Path) -> None:
    shared = save_stack(data, "evening", loras(data))
    other = DataFolder(tmp_path / "theirs")
    put(other, "renamed", 1)
    put(other, "ink", 7)
    stack = import_stack(other, shared)
    assert [lora.file for lora in stack.loras] == ["renamed"]
    assert stack.loras[0].blocks == "MIDD"
    assert stack.missing == ("styles/oil",)
    assert stack.notes == ("'ink' is called 'renamed' here.",)
    assert list_stacks(other) == ["evening"]
    assert import_stack(other, shared).name != "evening"
    assert len(list_stacks(other)) == 2
    (other.loras / "renamed.safetensors").unlink()
    stack = load_stack(other, "evening")
    assert [lora.file for lora in stack.loras] == ["ink"]
    assert "another version" in stack.notes[0]


def test_a_changed_header_is_still_the_same_lora(data: DataFolder) -> None:
    save_stack(data, "evening", loras(data)[:1])
    put(data, "ink", 1, note="new metadata")
    assert load_stack(data, "evening").notes == ()


def test_nothing_is_overwritten_and_a_deleted_stack_is_in_the_trash(data: DataFolder) -> None:
    path = save_stack(data, "evening", loras(data))
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="already a stack"):
        save_stack(data, "evening", loras(data)[:1])
    assert path.read_bytes() == content
    moved = delete_stack(data, "evening")
    assert moved.read_bytes() == content
    assert moved.is_relative_to(data.trash)
    assert list_stacks(data) == []
    for name, stack in (("", loras(data)), ("empty", [])):
        with pytest.raises(ConfigError):
            save_stack(data, name, stack)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"inkwash_stack": 1}', '{"inkwash_stack": 1, "loras": [1]}', '{"inkwash_stack": 2, "loras": []}',
     '{"inkwash_stack": 1, "loras": [{"file": "ink", "evil": 1}]}', "[" * 100_000],
)  # fmt: skip
def test_files_that_are_no_stack_are_refused(data: DataFolder, tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ConfigError):
        import_stack(data, tmp_path / "x.json")
    assert list_stacks(data) == []


def test_names_do_not_leave_the_folder(data: DataFolder) -> None:
    (data.root / "secret.json").write_text('{"inkwash_stack": 1, "loras": []}')
    for name in ("../secret", "gone", ""):
        with pytest.raises(ConfigError, match="no saved stack"):
            delete_stack(data, name)


def test_the_command_saves_shows_exports_and_deletes(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stack(*arguments: str) -> str:
        assert main(["stack", *arguments, "--data-dir", str(data.root)]) == 0
        return capsys.readouterr().out

    stack("save", "evening", "--lora", "ink:0.5:0.25", "--tags", "<lora:oil:1:lbw=OUTS:stop=10>")
    assert stack("list") == "evening\n"
    shown = json.loads(stack("show", "evening", "--json"))
    assert [(lora["file"], lora["unet_weight"], lora["blocks"], lora["end"]) for lora in shown["loras"]] == [
        ("ink", 0.5, "", 1.0),
        ("styles/oil", 1.0, "OUTS", 0.5),
    ]
    assert "OUTS" in stack("show", "evening")
    copy = Path(stack("export", "evening", str(tmp_path)).strip())
    assert json.loads(copy.read_text())["name"] == "evening"
    stack("delete", "evening")
    stack("import", str(copy))
    assert stack("list") == "evening\n"
    assert main(["stack", "show", "nothing", "--data-dir", str(data.root)]) != 0
