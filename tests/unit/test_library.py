"""The LoRA library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.random_lora import modules_for
from trainer import library
from trainer.base_models.listing import resolve_base, resolve_vae
from trainer.config.generate import GenerateConfig
from trainer.errors import ConfigError, LoraFileError, ModelFileError, ResourceError
from trainer.files import file_sha256
from trainer.init_pictures import with_kept_pictures
from trainer.lora_files.file import write_lora
from trainer.paths import DataFolder
from trainer.stacks import load_stack
from trainer.upscalers import resolve_upscaler

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def make(path: Path, *, rank: int = 4, **metadata: str) -> Path:
    write_lora(path, modules_for({PATH: (8, 8)}, rank=rank, seed=len(path.name)), metadata, "fp16")
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    make(folder.loras / "ink.safetensors", ss_sd_model_name="tiny", **{"modelspec.trigger_phrase": "zib, ink style"})
    make(folder.loras / "styles" / "oil.v1.safetensors", rank=8)
    (folder.loras / "bad.safetensors").write_bytes(b"PK\x03\x04" + b"x" * 90)
    (folder.loras / ".partial-1.safetensors").write_bytes(b"half")
    os.utime(folder.loras / "ink.safetensors", (2e9, 2e9))
    return folder


def names(data: DataFolder, search: str = "") -> set[str]:
    return {entry.name for entry in library.list_loras(data, search)}


def test_the_list_has_every_file_and_says_what_is_wrong_with_a_bad_one(data: DataFolder) -> None:
    entries = {entry.name: entry for entry in library.list_loras(data)}
    assert entries.keys() == {"ink", "styles/oil.v1", "bad"}
    assert next(iter(entries)) == "ink"
    assert (entries["ink"].rank, entries["ink"].base_model) == (4, "tiny")
    assert entries["ink"].trigger_words == ("zib", "ink style")
    assert entries["styles/oil.v1"].rank == 8
    assert entries["bad"].info is None
    assert "pickle" in entries["bad"].problem
    assert library.list_loras(DataFolder(data.root / "nothing")) == []


def test_search_needs_all_words_anywhere(data: DataFolder) -> None:
    assert names(data, "ZIB tiny") == {"ink"}
    assert names(data, "oil") == {"styles/oil.v1"}
    assert names(data, "oil zib") == set()


def test_headers_are_read_once_until_the_file_changes(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = library.inspect_file
    monkeypatch.setattr(
        library, "inspect_file", lambda path, **options: (reads.append(path.name), real(path, **options))[1]
    )
    library.list_loras(data)
    library.list_loras(data)
    assert sorted(reads) == ["bad.safetensors", "ink.safetensors", "oil.v1.safetensors"]
    make(data.loras / "ink.safetensors", rank=2)
    assert library.get_lora(data, "ink").rank == 2
    assert len(reads) == 4


def test_a_name_or_a_path_is_resolved(data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = make(tmp_path / "elsewhere" / "mine.safetensors")
    assert library.resolve_lora(data, "ink") == data.loras / "ink.safetensors"
    assert library.resolve_lora(data, "ink.safetensors") == data.loras / "ink.safetensors"
    assert library.resolve_lora(data, "styles/oil.v1") == data.loras / "styles" / "oil.v1.safetensors"
    assert library.resolve_lora(data, outside) == outside
    monkeypatch.chdir(outside.parent)
    assert library.resolve_lora(data, "mine.safetensors") == outside
    with pytest.raises(LoraFileError, match="Did you mean ink"):
        library.resolve_lora(data, "inky")


def test_names_cannot_leave_the_library(data: DataFolder) -> None:
    make(data.root / "secret.safetensors")
    for name in ("../secret", "/etc/passwd", "styles/../../secret", ""):
        with pytest.raises(LoraFileError, match="no LoRA"):
            library.get_lora(data, name)
        with pytest.raises(LoraFileError, match="no LoRA"):
            library.delete_lora(data, name)
    with pytest.raises(LoraFileError, match="no LoRA"):
        library.resolve_lora(data, "../secret")
    assert (data.root / "secret.safetensors").exists()


def test_import_copies_the_file_with_its_preview_and_never_overwrites(data: DataFolder, tmp_path: Path) -> None:
    source = make(tmp_path / "in" / "ink.safetensors", rank=3)
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "ink.preview.png")
    entry = library.import_lora(data, source)
    assert (entry.name, entry.rank) == ("ink 2", 3)
    assert entry.preview == data.loras / "ink 2.preview.png"
    assert file_sha256(entry.path) == file_sha256(source)
    assert library.get_lora(data, "ink").rank == 4
    # The same bytes are not copied twice.
    assert library.import_lora(data, source, "other name").name == "ink 2"
    assert names(data) == {"ink", "ink 2", "styles/oil.v1", "bad"}


def test_import_refuses_what_is_no_lora_and_leaves_nothing(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "evil.safetensors").write_bytes(b"\x80\x02" + b"x" * 90)
    with pytest.raises(LoraFileError, match="pickle"):
        library.import_lora(data, tmp_path / "evil.safetensors")
    with pytest.raises(LoraFileError, match="cannot be read"):
        library.import_lora(data, tmp_path / "gone.safetensors")
    assert names(data) == {"ink", "styles/oil.v1", "bad"}


def test_rename_takes_the_preview_along_and_never_overwrites(data: DataFolder) -> None:
    Image.new("RGB", (4, 4)).save(data.loras / "ink.jpg")
    entry = library.rename_lora(data, "ink", "tusche / 墨")
    assert entry.name == "tusche _ 墨"
    assert entry.preview == data.loras / "tusche _ 墨.jpg"
    assert not (data.loras / "ink.safetensors").exists()
    make(data.loras / "taken.safetensors")
    with pytest.raises(LoraFileError, match="already"):
        library.rename_lora(data, entry.name, "taken")
    with pytest.raises(LoraFileError, match="needs a name"):
        library.rename_lora(data, entry.name, " .. ")
    assert library.rename_lora(data, "styles/oil.v1", "oil.v2").name == "styles/oil.v2"


def test_delete_goes_to_the_trash_and_comes_back(data: DataFolder) -> None:
    Image.new("RGB", (4, 4)).save(data.loras / "styles" / "oil.v1.png")
    digest = file_sha256(data.loras / "styles" / "oil.v1.safetensors")
    library.delete_lora(data, "styles/oil.v1")
    assert names(data) == {"ink", "bad"}
    assert list((data.loras / "styles").iterdir()) == []
    trashed = library.list_trashed(data)[0]
    assert trashed.name == "styles/oil.v1"
    make(data.loras / "styles" / "oil.v1.safetensors", rank=1)
    entry = library.restore_lora(data, trashed)
    assert entry.name == "styles/oil.v1 2"
    assert file_sha256(entry.path) == digest
    assert entry.preview is not None
    assert entry.preview.name == "oil.v1 2.png"
    assert library.list_trashed(data) == []
    with pytest.raises(LoraFileError, match="no longer"):
        library.restore_lora(data, trashed)


def test_a_lora_that_cannot_be_moved_stays_whole(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(data.loras / "ink.png")
    before = {path: path.read_bytes() for path in data.loras.iterdir() if path.is_file()}
    library.delete_lora(data, "styles/oil.v1")
    move = shutil.move

    def refuse(source: Path, target: Path) -> None:
        if Path(source) == data.loras / "ink.png":
            raise PermissionError(13, "open in another program")
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("trainer.trash.shutil.move", refuse)
        with pytest.raises(ResourceError):
            library.delete_lora(data, "ink")
    assert {path: path.read_bytes() for path in data.loras.iterdir() if path.is_file()} == before
    # What was left in the trash by others hides nothing.
    for name, text in (("lora-empty", '{"name": "x", "deleted": 9e9}'), ("lora-torn", "{")):
        (data.trash / name).mkdir()
        (data.trash / name / "lora.json").write_text(text)
    assert [trashed.name for trashed in library.list_trashed(data)] == ["styles/oil.v1"]


LONG = "永" * 90  # 270 bytes: more than a name can have


@pytest.mark.parametrize("name", [LONG, f"/{LONG}", f"styles/{LONG}.safetensors", f"{LONG}.ckpt", "nul\0"])
def test_names_that_no_system_takes_are_not_found_and_nothing_worse(data: DataFolder, name: str) -> None:
    with pytest.raises(LoraFileError):
        library.resolve_lora(data, name)
    with pytest.raises(LoraFileError):
        library.get_lora(data, name)
    with pytest.raises(ModelFileError):
        resolve_base(name, data)
    with pytest.raises(ModelFileError):
        resolve_vae(name)
    with pytest.raises(ConfigError):
        load_stack(data, name)
    with pytest.raises(ConfigError):
        with_kept_pictures(GenerateConfig(init_image=name), data)
    with pytest.raises(ConfigError):
        resolve_upscaler(data, name)


def test_export_makes_a_copy_and_never_overwrites(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    first = library.export_copy(data, "ink", tmp_path / "out")
    second = library.export_copy(data, "ink", tmp_path / "out")
    third = library.export_copy(data, "ink", tmp_path / "out" / "named.v2")
    assert [path.name for path in (first, second, third)] == [
        "ink.safetensors",
        "ink 2.safetensors",
        "named.v2.safetensors",
    ]
    assert file_sha256(first) == file_sha256(data.loras / "ink.safetensors") == file_sha256(third)


def test_a_picture_becomes_the_preview(data: DataFolder, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(data.loras / "ink.preview.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "new.jpg")
    assert library.set_preview(data, "ink", tmp_path / "new.jpg").preview == data.loras / "ink.jpg"
    assert not (data.loras / "ink.preview.png").exists()
    with pytest.raises(LoraFileError, match="PNG, JPEG"):
        library.set_preview(data, "ink", data.loras / "bad.safetensors")
