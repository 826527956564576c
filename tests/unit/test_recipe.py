"""Recipes inside pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from trainer.config.generate import GenerateConfig
from trainer.errors import ConfigError
from trainer.recipe import Recipe, RecipeHashes, read_infotext, read_recipe, save_picture

CONFIG = GenerateConfig.model_validate(
    {
        "base": "/home/somebody/models/base",
        "prompt": "日本 house, <b>bold</b>\nsecond line",
        "negative_prompt": "blurry",
        "count": 5,
        "clip_skip": 2,
        "guidance_scale": 6.5,
        "device": "cpu",
        "loras": [
            {"file": "/home/somebody/loras/ink.safetensors", "unet_weight": 0.8, "text_encoder_weight": 0.8},
            {"file": "two", "unet_weight": 1.0, "text_encoder_weight": 0.25, "blocks": "MIDD", "start": 0.2},
            {"file": "off", "is_on": False},
        ],
    }
)
RECIPE = Recipe(CONFIG, seed=2**40 + 3, width=64, height=96, base_title="Base, 1.5")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    save_picture(Image.new("RGB", (64, 96), (1, 2, 3)), tmp_path / "days" / "a.png", RECIPE)
    return tmp_path / "days" / "a.png"


def test_a_recipe_comes_back_as_settings_for_this_one_picture(picture: Path) -> None:
    found = GenerateConfig.model_validate(read_recipe(picture))
    assert (found.seed, found.width, found.height, found.count) == (2**40 + 3, 64, 96, 1)
    assert (found.prompt, found.negative_prompt) == (CONFIG.prompt, CONFIG.negative_prompt)
    assert (found.clip_skip, found.guidance_scale, found.sampler) == (2, 6.5, CONFIG.sampler)
    assert [(lora.file, lora.unet_weight, lora.text_encoder_weight) for lora in found.loras] == [
        ("ink", 0.8, 0.8),
        ("two", 1.0, 0.25),
    ]
    assert found.base == "base"


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_jpeg_and_webp_carry_the_same(suffix: str, picture: Path, tmp_path: Path) -> None:
    image = Image.linear_gradient("L").convert("RGB")
    path = save_picture(image, tmp_path / f"a{suffix}", RECIPE)
    assert path.suffix == suffix
    assert read_recipe(path) == read_recipe(picture)
    assert read_infotext(path) == read_infotext(picture)
    with Image.open(path) as saved:
        # As the download sites look for it: EXIF's UserComment, UTF-16 in the order that piexif writes.
        comment = saved.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + RECIPE.infotext().encode("utf-16-be")
    assert b"somebody" not in path.read_bytes()
    rough = save_picture(
        image, tmp_path / f"rough{suffix}", replace(RECIPE, config=CONFIG.model_copy(update={"quality": 5}))
    )
    assert rough.stat().st_size < path.stat().st_size


def test_a_recipe_too_long_for_jpeg_is_kept_in_a_png(tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, config=CONFIG.model_copy(update={"prompt": "永" * 10_000, "negative_prompt": "永" * 10_000})
    )
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", recipe)
    assert path == tmp_path / "a.png"
    assert not (tmp_path / "a.jpg").exists()
    assert read_recipe(path)["prompt"] == "永" * 10_000
    first = path.read_bytes()
    again = save_picture(Image.new("RGB", (8, 8), (9, 9, 9)), tmp_path / "a.jpg", recipe)
    assert again == tmp_path / "a 2.png"
    assert path.read_bytes() == first


def test_hashes_stand_in_the_infotext_as_the_sites_look_them_up() -> None:
    hashes = RecipeHashes("a" * 64, ("b" * 64, "c" * 64), {"word": "d" * 64})
    text = replace(RECIPE, hashes=hashes).infotext()
    assert f"Model hash: {'a' * 10}, Model: " in text
    assert f'Lora hashes: "ink: {"b" * 12}, two: {"c" * 12}", TI hashes: "word: {"d" * 12}", Version: Inkwash' in text


def test_no_path_of_the_computer_is_in_the_file(picture: Path) -> None:
    assert b"somebody" not in picture.read_bytes()
    with Image.open(picture) as image:
        assert "somebody" not in json.dumps(image.info)
        assert image.getpixel((0, 0)) == (1, 2, 3)


def test_the_infotext_is_what_other_tools_read(picture: Path) -> None:
    lines = read_infotext(picture).split("\n")
    assert lines[0].startswith("日本 house, <b>bold</b>")
    assert lines[1] == "second line <lora:ink:0.8> <lora:two:te=0.25:unet=1:lbw=MIDD:step=4-20>"
    assert lines[2] == "Negative prompt: blurry"
    assert lines[3].startswith(
        'Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1099511627779, Size: 64x96, Model: "Base, 1.5", Clip skip: 2'
    )


def test_pictures_without_a_recipe_and_damaged_ones_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    (tmp_path / "text.png").write_text("no picture")
    chunks = {
        "not json": "{",
        "no settings": "{}",
        "unknown key": json.dumps({"settings": {"evil": 1}}),
        "deep": "[" * 100_000,
    }
    for name, text in chunks.items():
        info = PngImagePlugin.PngInfo()
        info.add_text("inkwash", text)
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png", pnginfo=info)
    cases = {
        "plain.png": "no Inkwash recipe",
        "photo.jpg": "no Inkwash recipe",
        "text.png": "cannot be read",
        "gone.png": "cannot be read",
    }
    for name, word in (cases | {f"{name}.png": "damaged" for name in chunks}).items():
        with pytest.raises(ConfigError, match=word):
            read_recipe(tmp_path / name)


def test_a_large_compressed_text_is_no_bomb(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("inkwash", "x" * 5_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "bomb.png", pnginfo=info)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "bomb.png")
