from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from app.services.library import LibraryService, facts
from tests import zoo
from trainer.errors import DatasetError, LoraFileError
from trainer.paths import DataFolder

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def lora(path: Path, *, rank: int = 4, metadata: dict[str, str] | None = None) -> Path:
    tensors = {
        f"{LAYER}.lora_down.weight": np.zeros((rank, 32), np.float16),
        f"{LAYER}.lora_up.weight": np.zeros((32, rank), np.float16),
        f"{LAYER}.alpha": np.array(rank / 2, np.float16),
    }
    save_file(tensors, path, metadata or {})
    return path


@pytest.fixture
def service(tmp_path: Path) -> LibraryService:
    return LibraryService(DataFolder(tmp_path / "data"))


def test_a_drop_of_files_and_a_preview(service: LibraryService, tmp_path: Path) -> None:
    good = lora(
        tmp_path / "墨 style.safetensors", metadata={"modelspec.trigger_phrase": "zsy style", "ss_steps": "300"}
    )
    zoo.halves().save(tmp_path / "墨 style.png")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04 a pickle")
    zoo.noise().save(tmp_path / "alone.png")
    result = service.import_files(
        [good, *(tmp_path / name for name in ("墨 style.png", "bad.safetensors", "alone.png"))]
    )
    assert result.names == ("墨 style",)
    assert sorted(finding.where for finding in result.refused) == ["alone.png", "bad.safetensors"]
    entry = service.entry("墨 style")
    assert entry.preview is not None
    assert dict(facts(entry.info)) | {"Rank": "4", "Alpha": "2", "Trigger words": "zsy style", "Steps": "300"} == dict(
        facts(entry.info)
    )
    (tile,) = service.tiles(service.entries())
    assert tile.label == "墨 style · zsy style · rank 4"
    with Image.open(tile.picture) as image:
        assert np.allclose(image.getpixel((4, 4)), (254, 0, 0), atol=8)


def test_a_lora_without_a_preview_gets_a_drawing_of_its_own(service: LibraryService, tmp_path: Path) -> None:
    service.import_files([lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors", rank=8)])
    pictures = {tile.name: tile.picture.read_bytes() for tile in service.tiles(service.entries())}
    assert pictures["a"] != pictures["b"]


def test_a_broken_preview_does_not_break_the_library(service: LibraryService, tmp_path: Path) -> None:
    service.import_files([lora(tmp_path / "a.safetensors")])
    zoo.text_as_picture(service.entry("a").path.with_suffix(".png"))
    (tile,) = service.tiles(service.entries())
    with Image.open(tile.picture) as image:
        image.load()
    with pytest.raises(DatasetError):
        service.set_preview("a", zoo.text_as_picture(tmp_path / "text.png"))


def test_what_is_in_the_folder_but_unusable_is_shown_with_its_reason(service: LibraryService, tmp_path: Path) -> None:
    (tmp_path / "data" / "loras").mkdir(parents=True)
    (tmp_path / "data" / "loras" / "bad.safetensors").write_bytes(b"no header at all")
    (entry,) = service.entries()
    assert entry.info is None
    assert entry.problem
    assert service.tiles([entry])[0].label == "✕ bad"


def test_rename_delete_and_bring_back(service: LibraryService, tmp_path: Path) -> None:
    service.import_files([lora(tmp_path / "a.safetensors")])
    assert service.rename("a", "新 name") == "新 name"
    content = service.entry("新 name").path.read_bytes()
    service.delete("新 name")
    assert service.entries() == []
    (trashed,) = service.trashed()
    assert service.restore(trashed.folder.name) == "新 name"
    assert service.entry("新 name").path.read_bytes() == content
    for missing in ("../../a", "", trashed.folder.name):
        with pytest.raises(LoraFileError, match="no longer in the trash"):
            service.restore(missing)


def test_search(service: LibraryService, tmp_path: Path) -> None:
    words = {"modelspec.trigger_phrase": "zsy style"}
    service.import_files([lora(tmp_path / "a.safetensors", metadata=words), lora(tmp_path / "b.safetensors", rank=8)])
    assert [entry.name for entry in service.entries("ZSY")] == ["a"]
    assert service.entries("nothing") == []
