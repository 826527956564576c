"""A picture of another program fills the form; the gallery is searched, and gives a recipe, deletes and brings back."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_tab
from trainer.config.generate import GenerateConfig
from trainer.recipe import Recipe, save_picture

EVIL = "<img src=x onerror=alert(1)>"


def test_a_dropped_jpeg_fills_the_form_and_the_gallery_is_searched(page: Page, app: App, tmp_path: Path) -> None:
    for index, prompt in enumerate(("a red house", f"a blue boat {EVIL}", "a green hill")):
        config = GenerateConfig.model_validate({"prompt": prompt, "num_inference_steps": 7 + index})
        colour = [(200, 60, 50), (60, 90, 200), (60, 160, 80)][index]
        path = app.data / "outputs" / "2026-11-01" / f"{index}.png"
        save_picture(Image.new("RGB", (64, 64), colour), path, Recipe(config, index, 64, 64, "Inkwash tiny"))

    exif = Image.Exif()
    text = (
        "a fox <lora:lost:0.5>\nNegative prompt: fog\nSteps: 13, Sampler: Euler, CFG scale: 4.5, Seed: 99, "
        "Size: 64x128, Clip skip: 2, Denoising strength: 0.4, Hires upscale: 1.5, Hires upscaler: Latent, Hires prompt: a cat, "
        "Version: v1.9.4"
    )
    exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
    Image.new("RGB", (64, 64)).save(tmp_path / "of another program.jpg", exif=exif)
    open_tab(page, "Generate")
    page.locator("#gen-drop input[type=file]").set_input_files(tmp_path / "of another program.jpg")
    expect(page.locator("#gen-prompt textarea")).to_have_value("a fox")
    expect(page.locator("#gen-num-inference-steps input").first).to_have_value("13")
    expect(page.locator("#gen-height input").first).to_have_value("128")
    expect(page.locator("#gen-sampler input").first).to_have_value("Euler")
    expect(page.locator("#gen-recipe")).to_contain_text("Not taken over: Hires prompt: a cat")
    expect(page.locator("#gen-recipe")).to_contain_text("The library lacks: lost")

    open_tab(page, "Gallery")
    tiles = page.locator("#gallery-grid button.thumbnail-item, #gallery-grid .grid-wrap button")
    expect(page.locator("#gallery-summary")).to_contain_text("3 pictures")
    expect(tiles).to_have_count(3)
    page.locator("#gallery-search input, #gallery-search textarea").first.fill("boat")
    expect(page.locator("#gallery-summary")).to_contain_text("1 picture ")
    expect(tiles).to_have_count(1)
    tiles.first.click()
    expect(page.locator("#gallery-about")).to_contain_text(EVIL)

    page.locator("#gallery-delete").click()
    expect(page.locator("#gallery-summary")).to_contain_text("Nothing fits the search.")
    assert not (app.data / "outputs" / "2026-11-01" / "1.png").exists()
    page.locator("#gallery-undo").click()
    expect(page.locator("#gallery-summary")).to_contain_text("1 picture ")
    page.locator("#gallery-star").click()
    expect(page.locator("#gallery-star")).to_have_text(re.compile("★"))

    page.locator("#gallery-send").click()
    expect(page.locator("#gen-prompt textarea")).to_be_visible()
    expect(page.locator("#gen-prompt textarea")).to_have_value(f"a blue boat {EVIL}")
    expect(page.locator("#gen-num-inference-steps input").first).to_have_value("8")
