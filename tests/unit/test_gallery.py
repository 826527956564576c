"""The gallery: what is found by which search, a cache that follows the files, favourites, the trash and back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from app.services.gallery import GalleryService
from trainer import gallery as module
from trainer.config.generate import GenerateConfig
from trainer.errors import ConfigError, ResourceError
from trainer.gallery import Gallery
from trainer.paths import DataFolder
from trainer.recipe import Recipe, save_picture

DAY = 86_400
NOON = 1_795_000_000  # 2026-11-18


def put(data: DataFolder, name: str, prompt: str, *, loras: tuple[str, ...] = (), seed: int = 1, day: int = 0) -> Path:
    values = {"prompt": prompt, "negative_prompt": "fog", "loras": [{"file": lora} for lora in loras]}
    path = data.outputs / name
    save_picture(
        Image.new("RGB", (64, 48)), path, Recipe(GenerateConfig.model_validate(values), seed, 64, 48, "Inkwash tiny")
    )
    os.utime(path, (NOON + day * DAY, NOON + day * DAY))
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    put(folder, "2026-11-18/1-1.png", "a red house, <b>bold</b>", loras=("ink",), seed=1)
    put(folder, "2026-11-19/2-22.jpg", "a castle on a hill", loras=("ink", "robot"), seed=22, day=1)
    put(folder, "2026-11-20/3-3.webp", "a red castle", seed=3, day=2)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a FOX <lora:tail:1>\nSteps: 1, Sampler: Euler, Seed: 77, Size: 8x8, Model: other")
    Image.new("RGB", (8, 8)).save(folder.outputs / "from elsewhere.png", pnginfo=chunks)
    os.utime(folder.outputs / "from elsewhere.png", (NOON + 3 * DAY, NOON + 3 * DAY))
    (folder.outputs / "no picture.png").write_text("text")
    (folder.outputs / ".partial-1.png").write_text("text")
    return folder


@pytest.mark.parametrize(
    ("search", "seeds"),
    [
        ("", ["77", "3", "22", "1"]),
        ("red", ["3", "1"]),
        ("RED castle", ["3"]),
        ('"red house"', ["1"]),
        ("castle -red", ["22"]),
        ("lora:ink", ["22", "1"]),
        ("lora:ink -lora:robot", ["1"]),
        ("lora:tail", ["77"]),
        ("model:tiny", ["3", "22", "1"]),
        ("model:other fox", ["77"]),
        ("seed:2", []),
        ("seed:22", ["22"]),
        ("date:2026-11-19", ["22"]),
        ("date:2026-11", ["77", "3", "22", "1"]),
        ("date:2026-11-18..2026-11-19", ["22", "1"]),
        ("date:2025", []),
        ("negative:fog", ["3", "22", "1"]),
        ("fog", []),
        ("unknown:word", []),
        ("elsewhere", ["77"]),
        ("(", []),
    ],
)
def test_searches(search: str, seeds: list[str], data: DataFolder) -> None:
    assert [picture.seed for picture in Gallery(data).pictures(search)] == seeds


@pytest.mark.parametrize("search", ["date:yesterday", "date:2026-1", "is:nice", "date:2026-11-18..x"])
def test_what_cannot_be_searched_for_is_told(search: str, data: DataFolder) -> None:
    with pytest.raises(ConfigError, match=r"no date|nothing to search"):
        Gallery(data).pictures(search)


def test_files_are_opened_once_and_again_when_they_change(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    look = module._look
    monkeypatch.setattr(module, "_look", lambda root, name, stamp: opened.append(name) or look(root, name, stamp))
    first = Gallery(data)
    assert len(first.pictures()) == 4
    assert len(opened) == 5
    opened.clear()
    assert first.pictures() == first.pictures()
    assert opened == []
    again = Gallery(data)  # after a restart: from the cache, but what is no picture
    assert again.pictures() == first.pictures()
    assert opened == ["no picture.png"]
    opened.clear()
    put(data, "2026-11-18/1-1.png", "a blue house", day=9)
    (data.outputs / "2026-11-19" / "2-22.jpg").unlink()
    assert [picture.prompt for picture in again.pictures("house")] == ["a blue house"]
    assert again.pictures("seed:22") == []
    assert opened == ["2026-11-18/1-1.png"]
    (data.cache / "gallery.json").write_text("{")
    assert Gallery(data).pictures() == again.pictures()


def test_favourites_stay(data: DataFolder) -> None:
    gallery = Gallery(data)
    picture = gallery.pictures("seed:22")[0]
    gallery.mark(picture, is_favourite=True)
    assert [found.seed for found in Gallery(data).pictures("is:favourite")] == ["22"]
    assert len(gallery.pictures("-is:favourite")) == 3
    gallery.mark(picture, is_favourite=False)
    assert gallery.pictures("is:favourite") == []


def test_delete_and_undo(data: DataFolder) -> None:
    gallery = Gallery(data)
    picture = gallery.pictures("seed:22")[0]
    content = gallery.path(picture).read_bytes()
    gallery.delete(picture)
    assert gallery.pictures("seed:22") == []
    with pytest.raises(ConfigError, match="not there any more"):
        gallery.get(picture.id)
    with pytest.raises(ConfigError, match="not there any more"):
        gallery.delete(picture)
    put(data, picture.name, "another took its place", seed=5)
    back = Gallery(data).restore(Gallery(data).trashed()[0])
    assert back.name == "2026-11-19/2-22 2.jpg"
    assert gallery.path(back).read_bytes() == content
    assert gallery.trashed() == []
    assert [found.seed for found in gallery.pictures("another")] == ["5"]


def test_a_picture_that_cannot_be_moved_stays_and_hides_no_older_undo(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = Gallery(data)
    gallery.delete(gallery.pictures("seed:22")[0])
    picture = gallery.pictures("seed:3")[0]

    def move(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)  # as between disks
        raise PermissionError(13, "open in another program")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.trash.shutil.move", move)
        with pytest.raises(ResourceError):
            gallery.delete(picture)
    assert gallery.path(picture).is_file()
    assert len(list(data.trash.iterdir())) == 1
    # Taken out of the trash by hand, and left over by an older Inkwash: nothing to bring back.
    gallery.delete(picture)
    (gallery.trashed()[0].folder / "3-3.webp").unlink()
    assert [trashed.name for trashed in gallery.trashed()] == ["2026-11-19/2-22.jpg"]
    assert gallery.restore(gallery.trashed()[0]).seed == "22"


def test_a_picture_with_a_long_name_is_deleted_and_brought_back(data: DataFolder) -> None:
    name = "永" * 80
    path = put(data, f"{name}.png", "long", seed=4)
    gallery = Gallery(data)
    trashed = gallery.delete(gallery.pictures("seed:4")[0])
    assert not path.exists()
    assert trashed.folder.is_relative_to(data.trash)
    assert gallery.restore(gallery.trashed()[0]).name == f"{name}.png"


def test_a_full_disk_does_not_keep_the_gallery_shut(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("The disk is full: the gallery's list could not be saved.")

    monkeypatch.setattr(module, "write_json", full)
    assert len(Gallery(data).pictures()) == 4


def test_a_forged_record_in_the_trash_leads_nowhere(data: DataFolder, tmp_path: Path) -> None:
    gallery = Gallery(data)
    folder = data.trash / "picture-forged"
    folder.mkdir(parents=True)
    (folder / "evil.png").write_bytes(b"x")
    (folder / "picture.json").write_text(json.dumps({"name": "../../evil.png", "deleted": 1}))
    with pytest.raises(ConfigError, match="no longer in the trash"):
        gallery.restore(gallery.trashed()[0])
    assert not list(tmp_path.glob("evil.png"))


def test_links_out_of_the_folder_are_not_followed(data: DataFolder, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    put(DataFolder(tmp_path), "../private/secret.png", "a secret")
    try:
        (data.outputs / "linked").symlink_to(tmp_path / "private")
        (data.outputs / "linked.png").symlink_to(tmp_path / "private" / "secret.png")
    except OSError:
        pytest.skip("this system makes no links")
    assert Gallery(data).pictures("secret") == []


def test_pages(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.gallery.PAGE", 4)
    for index in range(6):
        put(data, f"many/{index}.png", "one of many", seed=index, day=-index)
    service = GalleryService(data)
    first, last = service.page("many", 0), service.page("many", 99)
    assert (len(first.pictures), first.num_pages, first.total) == (4, 2, 6)
    assert (len(last.pictures), last.page) == (2, 1)
    tile = service.tile(first.pictures[0])
    assert tile.is_relative_to(data.cache)
    assert Image.open(tile).size == (64, 48)
