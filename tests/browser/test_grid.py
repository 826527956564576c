"""A grid by clicks, and a cell's recipe sent back to the form; a stack that fights, and its suggested weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

from tests.browser.conftest import App, fill_number, open_tab
from trainer.config.generate import GenerateConfig
from trainer.recipe import Recipe, save_picture

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
_LONG = 240_000


def test_a_grid_of_two_by_two(page: Page, app: App) -> None:
    open_tab(page, "Generate")
    page.locator("#gen-prompt textarea").fill("a red house")
    fill_number(page, "gen-num-inference-steps", "1")
    page.locator("#gen-grid > button").click()
    page.locator("#grid-x input, #grid-x textarea").first.fill("cfgg=3,5")
    page.locator("#grid-y input, #grid-y textarea").first.fill("seed=11,12")
    page.locator("#grid-start").click()
    expect(page.locator("#grid-problems")).to_contain_text("x: at character 1: 'cfgg' is no setting")

    page.locator("#grid-x input, #grid-x textarea").first.fill("cfg=3,5")
    page.locator("#grid-start").click()
    pictures = page.locator("#grid-gallery .thumbnail-item img")
    expect(pictures).to_have_count(5, timeout=_LONG)
    expect(page.locator("#grid-problems")).to_be_empty()
    (grid,) = (app.data / "outputs").rglob("*-grid.png")
    with Image.open(grid) as picture:
        assert min(picture.size) > 2 * 64
    assert len(list(Path(app.data / "outputs").rglob("*.png"))) == 5

    pictures.nth(4).click()
    expect(page.locator("#gen-recipe")).to_contain_text("12")
    page.locator("#gen-back").click()
    expect(page.locator("#gen-seed textarea, #gen-seed input").first).to_have_value("12")
    expect(page.locator("#gen-guidance-scale input").first).to_have_value("5")


@pytest.mark.slow
def test_two_loras_that_do_the_same_are_told_and_weighted_down_by_a_click(page: Page, app: App, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tensors = {
        f"{LAYER}.lora_down.weight": generator.normal(size=(4, 128)).astype(np.float32),
        f"{LAYER}.lora_up.weight": generator.normal(size=(128, 4)).astype(np.float32),
        f"{LAYER}.alpha": np.array(4, np.float32),
    }
    for name in ("first", "second"):
        save_file(tensors, app.data / "loras" / f"{name}.safetensors")
    open_tab(page, "Generate")
    weights = {"first": 1.0, "second": 0.8}
    loras = [{"file": name, "unet_weight": w, "text_encoder_weight": w} for name, w in weights.items()]
    config = GenerateConfig.model_validate({"prompt": "a house", "loras": loras})
    save_picture(Image.new("RGB", (64, 64)), tmp_path / "stack.png", Recipe(config, 1, 64, 64, "Inkwash tiny"))
    page.locator("#gen-drop input[type=file]").set_input_files(tmp_path / "stack.png")
    expect(page.locator("#lora-unet-1 input[type=number]")).to_have_value("0.8")
    page.locator("#stack-conflicts > button").click()
    page.locator("#conflicts-start").click()
    expect(page.locator("#conflicts-found")).to_contain_text("do much the same", timeout=_LONG)
    expect(page.locator("#conflicts-found svg")).to_be_visible()
    page.locator("#conflicts-apply").click()
    expect(page.locator("#lora-unet-0 input[type=number]")).to_have_value("0.45")
    expect(page.locator("#lora-unet-1 input[type=number]")).to_have_value("0.45")
    expect(page.locator("#lora-text-1 input[type=number]")).to_have_value("0.45")
