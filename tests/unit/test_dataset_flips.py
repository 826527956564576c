"""Advice on mirroring: what was put into a set is what the advice names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.prepare_pictures import noise
from trainer.dataset.flips import advise_flips, same_side_chance
from trainer.dataset.scan import PictureFacts


def facts_of(folder: Path, images: list[Image.Image], caption: str = "a leaf") -> list[PictureFacts]:
    found = []
    for index, image in enumerate(images):
        path = folder / f"{index}.png"
        image.save(path)
        found.append(PictureFacts(path, path.name, *image.size, sha256=str(index), caption=caption))
    return found


def accidental(number: int) -> list[Image.Image]:
    return [noise(64, 64, index) for index in range(number)]


def lit_from_the_left(number: int) -> list[Image.Image]:
    light = Image.linear_gradient("L").rotate(90).resize((64, 64))
    return [Image.blend(image, light.convert("RGB"), 0.3) for image in accidental(number)]


def advice(pictures: list[PictureFacts]) -> str:
    return advise_flips(pictures, lambda facts: facts.path).sentence


def test_sides_that_differ_by_chance_are_no_reason_and_those_that_always_do_are(tmp_path: Path) -> None:
    assert advice(facts_of(tmp_path, accidental(24))).startswith("Nothing speaks against mirroring")
    assert "differ in the same way" in advice(facts_of(tmp_path, lit_from_the_left(24)))
    turned = [ImageOps.mirror(image) if index % 2 else image for index, image in enumerate(lit_from_the_left(24))]
    assert advice(facts_of(tmp_path, turned)).startswith("Nothing speaks against mirroring")
    assert "too few to tell" in advice(facts_of(tmp_path, lit_from_the_left(5)))


def test_the_test_is_wrong_no_more_often_than_it_says() -> None:
    """Of sets whose sides are accidental, about one in twenty is below 0.05."""
    generator = np.random.default_rng(3)
    below = [same_side_chance(generator.standard_normal((12, 32, 32)), seed) <= 0.05 for seed in range(200)]
    assert 2 <= sum(below) <= 22


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("a man with a sword in his left hand", "24 captions name a left or right side"),
        ("a shop sign", "mirror writing"),
    ],
)
def test_captions_that_name_sides_or_text_are_a_reason(tmp_path: Path, caption: str, said: str) -> None:
    assert said in advice(facts_of(tmp_path, accidental(24), caption))
    assert "bright" not in advice(facts_of(tmp_path, accidental(24), "a bright, leftover design"))


def test_mirror_images_that_are_there_already_are_counted(tmp_path: Path) -> None:
    images = accidental(10)
    found = advise_flips(facts_of(tmp_path, images + [ImageOps.mirror(image) for image in images]), lambda f: f.path)
    assert found.num_mirrored == 20
    assert "20 of 20 pictures are there as a mirror image" in found.sentence
    symmetric = [Image.blend(image, ImageOps.mirror(image), 0.5) for image in images]
    assert advise_flips(facts_of(tmp_path, symmetric), lambda f: f.path).num_mirrored == 0
