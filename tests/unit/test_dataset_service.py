from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from app.services.datasets import PAGE_SIZE, DatasetService
from tests import zoo
from trainer.errors import DatasetError
from trainer.paths import DataFolder


@pytest.fixture
def service(tmp_path: Path) -> DatasetService:
    return DatasetService(DataFolder(tmp_path / "data"))


def test_a_drop_becomes_a_set_with_tiles_and_problems(service: DatasetService, tmp_path: Path) -> None:
    info, report = service.store.create_from("画", [zoo.everything(tmp_path / "zoo")], trigger_word="zsy")
    assert report.summary() == "15 pictures added, 3 captions."
    view = service.view("画")
    assert view.summary == "15 pictures, 3 captions, 9 problems"
    levels = [row.problem.is_error for row in view.problem_rows()]
    assert levels == sorted(levels, reverse=True)
    tiles = service.tiles(view, 0)
    assert len(tiles) == 15
    for path, _ in tiles:
        with Image.open(path) as image:
            assert max(image.size) <= 256
    labels = [label for _, label in tiles]
    assert "✕ huge.png" in labels
    assert "rotated.jpg · 64×96" in labels
    assert "⚠ animated.gif · 64×64" in labels
    assert (f"画 ({info.num_pictures})", "画") in service.choices()


def test_creating_without_pictures_is_refused(service: DatasetService) -> None:
    with pytest.raises(DatasetError, match="no pictures yet"):
        service.start_import("a", [], is_new=True)
    assert [name for _, name in service.choices() if name == "a"] == []


def test_pages_hold_every_picture_once(service: DatasetService, tmp_path: Path) -> None:
    for index in range(PAGE_SIZE + 5):
        zoo.good(tmp_path / "many" / f"{index}.png", seed=index, size=(32, 32)) if index else (
            tmp_path / "many"
        ).mkdir()
    info = service.store.link(tmp_path / "many")
    view = service.view(info.name)
    assert view.num_pages == 2
    pages = [service.tiles(view, page) for page in range(view.num_pages)]
    assert [len(page) for page in pages] == [PAGE_SIZE, 4]
    shown = service.picture(view, service.on_page(1, 0))
    assert shown is not None
    assert pages[1][0][1].startswith(shown.facts.name)


def test_walking_through_pictures_wraps_around_and_shows_broken_ones_without_an_image(
    service: DatasetService, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    zoo.good(tmp_path / "set" / "a.png", "a house")
    zoo.text_as_picture(tmp_path / "set" / "b.png")
    view = service.view(service.store.link(tmp_path / "set").name)
    first, second, third = (service.picture(view, index) for index in (0, 1, 2))
    assert first is not None
    assert second is not None
    assert first == third
    assert first.image is not None
    assert second.image is None
    assert (second.facts.name, second.index, second.total) == ("b.png", 1, 2)


def test_saving_an_unchanged_caption_writes_nothing(service: DatasetService, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    zoo.good(tmp_path / "set" / "a.png", "a house\n")
    name = service.store.link(tmp_path / "set").name
    assert not service.save_caption(name, "a.png", "a house ")
    # So an edit of the file is still seen.
    (tmp_path / "set" / "a.txt").write_text("a tower")
    assert service.store.caption_of(name, "a.png") == "a tower"
    assert service.save_caption(name, "a.png", "a bridge")
    assert service.store.caption_of(name, "a.png") == "a bridge"


def test_captions_are_filled_where_there_are_none(service: DatasetService, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    zoo.good(tmp_path / "set" / "red-house_01.png", seed=1)
    zoo.good(tmp_path / "set" / "b.png", "kept", seed=2)
    zoo.text_as_picture(tmp_path / "set" / "broken.png")
    name = service.store.link(tmp_path / "set").name
    service.store.set_trigger_word(name, "zsy")
    assert service.caption_missing(name, "{trigger}, {name}") == 1
    captions = {facts.name: facts.caption for facts in service.view(name).pictures}
    assert captions == {"b.png": "kept", "broken.png": None, "red-house_01.png": "zsy, red house"}
    assert service.caption_missing(name, "{name}") == 0


def test_a_template_that_gives_nothing_is_said(service: DatasetService, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    zoo.good(tmp_path / "set" / "001.png")
    name = service.store.link(tmp_path / "set").name
    with pytest.raises(DatasetError, match="gives no words"):
        service.caption_missing(name, "{name}")


def test_an_empty_set_can_be_looked_at(service: DatasetService) -> None:
    service.store.create("empty")
    view = service.view("empty")
    assert service.tiles(view, 0) == []
    assert service.picture(view, 0) is None
    assert view.summary == "0 pictures, 0 captions, 1 problem"
