"""A picture's recipe by drop, the stack of LoRAs by clicks, and both tabs with cards on a phone in the dark."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

from tests.browser.conftest import App, fill_number, open_tab
from tests.browser.test_grid import LAYER as STRONG
from tests.browser.test_loop import choose
from trainer.config.generate import GenerateConfig
from trainer.recipe import Recipe, save_picture

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
_LONG = 120_000
LONG_NAME = "a_very_long_name_without_any_place_to_break_it_" * 2


def put_lora(app: App, name: str) -> None:
    tensors = {
        f"{LAYER}.lora_down.weight": np.zeros((4, 32), np.float16),
        f"{LAYER}.lora_up.weight": np.zeros((32, 4), np.float16),
        f"{LAYER}.alpha": np.array(2, np.float16),
    }
    save_file(tensors, app.data / "loras" / f"{name}.safetensors", {"modelspec.trigger_phrase": f"{name} word"})


@pytest.fixture
def picture(app: App, tmp_path: Path) -> Path:
    """A PNG whose recipe has three LoRAs, one of which is not in the library."""
    for name in ("first", "second"):
        put_lora(app, name)
    config = GenerateConfig.model_validate(
        {
            "prompt": "a blue boat, first word",
            "negative_prompt": "fog",
            "num_inference_steps": 11,
            "sampler": "Euler",
            "loras": [
                {"file": "first", "unet_weight": 0.3, "text_encoder_weight": 0.4},
                {"file": "lost"},
                {"file": "second", "unet_weight": 0.7, "text_encoder_weight": 0.8},
            ],
        }
    )
    path = tmp_path / "from a friend.png"
    save_picture(Image.new("RGB", (64, 64)), path, Recipe(config, 42, 64, 64, "Inkwash tiny"))
    return path


def expect_stack(page: Page, *rows: tuple[str, str, str]) -> None:
    """The stack's rows as (name, UNet weight, text-encoder weight), from top to bottom."""
    expect(page.locator(".lora-row")).to_have_count(len(rows))
    for index, (name, unet, text) in enumerate(rows):
        expect(page.locator(f"#lora-row-{index}")).to_contain_text(name)
        expect(page.locator(f"#lora-unet-{index} input[type=number]")).to_have_value(unet)
        expect(page.locator(f"#lora-text-{index} input[type=number]")).to_have_value(text)


def test_a_dropped_picture_fills_the_form_and_its_stack_is_moved_and_thinned(page: Page, picture: Path) -> None:
    open_tab(page, "Generate")
    page.locator("#gen-drop input[type=file]").set_input_files(picture)
    expect(page.locator("#gen-prompt textarea")).to_have_value("a blue boat, first word")
    expect(page.locator("#gen-negative-prompt textarea, #gen-negative-prompt input").first).to_have_value("fog")
    expect(page.locator("#gen-num-inference-steps input").first).to_have_value("11")
    expect(page.locator("#gen-seed textarea, #gen-seed input").first).to_have_value("42")
    expect(page.locator("#gen-sampler input").first).to_have_value("Euler")
    expect(page.locator("body")).to_contain_text(re.compile("Not in the library, so left off: lost"))
    expect_stack(page, ("first", "0.3", "0.4"), ("second", "0.7", "0.8"))

    page.locator("#lora-down-0").click()
    expect_stack(page, ("second", "0.7", "0.8"), ("first", "0.3", "0.4"))
    page.locator("#lora-unet-1 input[type=number]").fill("0.55")
    page.locator("#lora-unet-1 input[type=number]").press("Tab")
    page.locator("#lora-up-1").click()
    expect_stack(page, ("first", "0.55", "0.4"), ("second", "0.7", "0.8"))
    page.locator("#lora-remove-0").click()
    expect_stack(page, ("second", "0.7", "0.8"))
    page.locator("#lora-word-0-0").click()
    prompt = page.locator("#gen-prompt textarea")
    expect(prompt).to_have_value("second word, a blue boat, first word")
    # Pasted at once, then typed to the end of a tag, then rubbed out: the rows follow each.
    prompt.fill("a boat <lora:first:0.5> <lora:second:0.7:0.4>")
    expect_stack(page, ("second", "0.7", "0.4"), ("first", "0.5", "0.5"))
    prompt.fill("a boat ")
    expect_stack(page, ("second", "0.7", "0.4"))
    prompt.press("End")
    page.keyboard.type("<lora:first:0.6>")
    expect_stack(page, ("second", "0.7", "0.4"), ("first", "0.6", "0.6"))
    for _ in "<lora:first:0.6>":
        page.keyboard.press("Backspace")
    expect_stack(page, ("second", "0.7", "0.4"))


def test_a_picture_without_a_recipe_is_refused_with_a_sentence(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "holiday.png")
    open_tab(page, "Generate")
    page.locator("#gen-drop input[type=file]").set_input_files(tmp_path / "holiday.png")
    expect(page.locator("body")).to_contain_text("There is no recipe in this picture.")


# Colours as the eye gets them: the contrast of WCAG 2.2, 1.4.3, of each text with what is painted behind it.
_CONTRASTS = """root => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] > 0.9) return c; } return [255, 255, 255, 1]; };
  const found = [];
  for (const e of document.querySelectorAll(root + ' *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found.push([e.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


def test_dataset_and_loras_on_a_phone_in_the_dark(page: Page, app: App) -> None:
    put_lora(app, LONG_NAME)
    page.set_viewport_size({"width": 390, "height": 844})
    if not page.evaluate("document.body.classList.contains('dark')"):
        page.locator("#theme-toggle").click()
    page.wait_for_function("document.body.classList.contains('dark')")

    open_tab(page, "Dataset")
    expect(page.locator("#dataset-gallery img").first).to_be_visible()
    page.locator("#dataset-gallery button.thumbnail-item, #dataset-gallery .grid-wrap button").first.click()
    expect(page.locator("#dataset-viewer")).to_be_visible()
    expect(page.locator("#dataset-image img")).to_be_visible()
    expect_it_fits(page)
    expect_it_is_readable(page, "#dataset-about", "#dataset-summary", "#dataset-facts")

    open_tab(page, "LoRAs")
    page.locator("#lora-search input, #lora-search textarea").first.fill("a_very_long")
    expect(page.locator("#lora-grid button img, #lora-grid img").first).to_be_visible()
    page.locator("#lora-grid button.thumbnail-item, #lora-grid .grid-wrap button").first.click()
    expect(page.locator("#lora-about")).to_contain_text("a_very_long_name")
    expect_it_fits(page)
    expect_it_is_readable(page, "#lora-summary", "#lora-about", "#lora-metadata")


def expect_it_fits(page: Page) -> None:
    """Nothing reaches over the right edge: no horizontal scrolling of the page, nor of what lies in it."""
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def expect_it_is_readable(page: Page, *roots: str) -> None:
    """Every text has the contrast that WCAG asks for."""
    for root in roots:
        low = [entry for entry in page.evaluate(_CONTRASTS, root) if entry[1] < 4.5]
        assert low == [], root


# Two frames later than it was moved: no hand is faster.
_MOVE_AND_CLICK = """weight => {
  const slider = document.querySelector("#lora-unet-1 input[type=range]");
  slider.value = weight;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
  requestAnimationFrame(() => requestAnimationFrame(() => document.querySelector("#gen-start").click()));
}"""


def test_three_on_the_stack_and_a_moved_slider_make_another_picture(page: Page, app: App) -> None:
    for seed, name in enumerate(("ink", "line", "wash")):
        generator = np.random.default_rng(seed)
        tensors = {
            f"{STRONG}.lora_down.weight": generator.normal(size=(4, 128)).astype(np.float32),
            f"{STRONG}.lora_up.weight": generator.normal(size=(128, 4)).astype(np.float32),
            f"{STRONG}.alpha": np.array(4, np.float32),
        }
        save_file(tensors, app.data / "loras" / f"{name}.safetensors")
    open_tab(page, "Generate")
    page.wait_for_timeout(3000)  # the stack of before comes back with the form
    for count in range(page.locator(".lora-row").count(), 0, -1):
        page.locator("#lora-remove-0").click()
        expect(page.locator(".lora-row")).to_have_count(count - 1)
    for index, name in enumerate(("ink", "line", "wash")):
        choose(page, "lora-add", re.compile(name))
        expect(page.locator(".lora-row")).to_have_count(index + 1)
    page.locator("#gen-prompt textarea").fill("a house")
    fill_number(page, "gen-num-inference-steps", "2")
    page.locator("#gen-seed textarea, #gen-seed input").first.fill("3")

    def finished() -> list[Path]:
        """The pictures that are whole: what is being written has a name that begins with a dot."""
        return [path for path in app.data.glob("outputs/**/*.png") if not path.name.startswith(".")]

    def made(weight: str) -> bytes:
        """The pixels of a picture with that weight of the second LoRA."""
        before = len(finished())
        # Without a pause: what is seen is what is made.
        page.evaluate(_MOVE_AND_CLICK, weight)
        expect(page.locator("#gen-gallery img").first).to_be_visible(timeout=_LONG)
        deadline = time.monotonic() + _LONG / 1000
        while len(pictures := finished()) == before and time.monotonic() < deadline:
            page.wait_for_timeout(200)
        # Whoever makes the next has seen this one: until its click was answered, a second one counts as a double click.
        while page.locator("#gen-gallery img").count() < len(pictures) and time.monotonic() < deadline:
            page.wait_for_timeout(200)
        newest = max(pictures, key=lambda path: path.stat().st_mtime_ns)
        with Image.open(newest) as image:
            return image.convert("RGB").tobytes()

    first = made("1")
    assert made("-0.5") != first
    # The weights were restored exactly: no trace of what was set between.
    assert made("1") == first
