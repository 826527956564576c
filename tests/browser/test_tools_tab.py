"""The Tools tab by clicks: two LoRAs merged, what is inside one, faults as sentences; and training again from a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file, save_file

from tests.browser.conftest import App, open_tab
from tests.browser.test_generate_tab import expect_it_fits, expect_it_is_readable
from trainer.config.run import RunConfig
from trainer.lora_files.metadata import TrainingFacts, build_metadata

LAYERS = [
    f"lora_unet_down_blocks_{block}_attentions_0_transformer_blocks_0_attn1_to_{side}"
    for block in range(2)
    for side in ("q", "k", "v")
]


def put_lora(app: App, name: str, seed: int, metadata: dict[str, str] | None = None) -> Path:
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{layer}.lora_down.weight"] = generator.normal(size=(4, 32)).astype(np.float32)
        tensors[f"{layer}.lora_up.weight"] = generator.normal(size=(32, 4)).astype(np.float32)
        tensors[f"{layer}.alpha"] = np.array(4, np.float32)
    path = app.data / "loras" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata or {"ss_base_model_version": "sd_v1"})
    return path


def put_lora_with_settings(app: App, name: str) -> None:
    config = RunConfig.model_validate(
        {"data": {"dataset": "gone-set"}, "training": {"steps": 321}, "adapter": {"unet": {"rank": 7, "alpha": 7}}}
    )
    facts = TrainingFacts(name, "Inkwash tiny", 321, 3, 8, 64, 64, 0.0, 1.0)
    put_lora(app, name, 3, build_metadata(config, facts))


def delta(path: Path, layer: str = LAYERS[0]) -> np.ndarray:
    tensors = load_file(path)
    up, down = tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.lora_down.weight"]
    return up @ down * float(tensors[f"{layer}.alpha"]) / len(down)


def choose(page: Page, element: str, option: str) -> None:
    page.locator(f"#{element} input").first.click()
    page.get_by_role("option", name=re.compile(rf"^\W*{re.escape(option)}( \(|$)")).first.click()


def picture(page: Page, name: str) -> None:
    """For whoever looks at the pages: a screenshot where INKWASH_SCREENSHOTS names a folder."""
    if folder := os.environ.get("INKWASH_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.slow
def test_two_loras_become_one_that_opens_in_the_library_and_another_trains_again(page: Page, app: App) -> None:
    ink, robot = put_lora(app, "ink", 1), put_lora(app, "robot", 2)
    put_lora_with_settings(app, "with recipe")
    open_tab(page, "Tools")
    page.locator("#tool").get_by_text("Merge", exact=True).click()
    page.locator("#tool-merge-start").click()
    expect(page.locator("#tool-merge-problems")).to_contain_text("LoRAs: choose a LoRA")
    choose(page, "tool-merge-add", "ink")
    expect(page.locator("#tool-merge-row-0")).to_contain_text("ink")
    choose(page, "tool-merge-add", "robot")
    expect(page.locator("#tool-merge-row-1")).to_contain_text("robot")
    expect(page.locator("#tool-merge-problems")).not_to_contain_text("choose a LoRA")
    page.locator("#tool-merge-unet-1 input[type=number]").fill("-0.5")
    page.locator("#tool-merge-unet-1 input[type=number]").press("Tab")

    # TIES gives what is not of low rank; the sentence stands at the field that mends it.
    choose(page, "tool-merge-method", "ties")
    expect(page.locator("#tool-merge-cut-rule.has-error")).to_contain_text("not of low rank")
    choose(page, "tool-merge-method", "sum")
    expect(page.locator("#tool-merge-cut-rule.has-error")).to_have_count(0)
    page.locator("#tool-merge-name textarea, #tool-merge-name input").first.fill("both")
    page.locator("#tool-merge-start").click()
    expect(page.locator("#tool-status")).to_contain_text("Finished")
    expect(page.locator("#tool-figures")).to_contain_text("2 LoRAs, 6 layers, rank 8, lost 0 % of the change")
    expect(page.locator("#tool-figures td").first).to_have_text("down_blocks.0.attentions.0")
    expect_it_is_readable(page, "#tool", "#tool-forms", "#tool-status", "#tool-figures")
    picture(page, "tools-merge")
    both = app.data / "loras" / "both.safetensors"
    np.testing.assert_allclose(delta(both), delta(ink) - 0.5 * delta(robot), atol=1e-4)

    page.locator("#tool-open").click()
    expect(page.locator("#lora-about")).to_contain_text("both")
    expect(page.locator("#lora-name input, #lora-name textarea").first).to_have_value("both")
    picture(page, "loras")

    # Training again: a merged file has no settings of its own; one that was trained here has, and its data set is missed by name.
    page.locator("#lora-again").click()
    expect(page.locator("body")).to_contain_text("does not carry Inkwash's training settings")
    page.locator("#lora-search input, #lora-search textarea").first.fill("with recipe")
    expect(page.locator("#lora-summary")).to_contain_text("1 LoRA,")
    page.locator("#lora-grid button.thumbnail-item, #lora-grid .grid-wrap button").first.click()
    expect(page.locator("#lora-name input, #lora-name textarea").first).to_have_value("with recipe")
    page.locator("#lora-again").click()
    expect(page.locator("#train-training-steps input").first).to_have_value("321")
    expect(page.locator("#train-adapter-unet-rank input").first).to_have_value("7")
    expect(page.locator("#train-problems")).to_contain_text("gone-set")
    page.locator("#train-data-dataset input").first.fill("ink-wash")
    page.locator("#train-data-dataset input").first.press("Enter")
    expect(page.locator("#train-problems")).not_to_contain_text("gone-set")
    expect(page.locator("#train-plan")).to_contain_text("pictures")


@pytest.mark.slow  # The suite's minutes are few, and other tests look at phones and the dark.
def test_inspect_on_a_phone_in_the_dark_and_a_broken_file_as_a_sentence(page: Page, app: App) -> None:
    put_lora(app, "zebra", 1)
    (app.data / "loras" / "broken.safetensors").write_bytes(b"\x10" + bytes(7) + b"not a header at all")
    page.set_viewport_size({"width": 390, "height": 844})
    if not page.evaluate("document.body.classList.contains('dark')"):
        page.locator("#theme-toggle").click()
    open_tab(page, "Tools")
    choose(page, "tool-inspect-file", "broken")
    page.locator("#tool-inspect-start").click()
    expect(page.locator("#tool-status")).to_contain_text("Failed")
    expect(page.locator("#tool-status .run-error")).to_contain_text("What to do:")

    # From the library to the tools.
    open_tab(page, "LoRAs")
    page.locator("#lora-search input, #lora-search textarea").first.fill("zebra")
    expect(page.locator("#lora-summary")).to_contain_text("1 LoRA,")
    page.locator("#lora-grid button.thumbnail-item, #lora-grid .grid-wrap button").first.click()
    page.locator("#lora-tools").click()
    expect(page.locator("#tool-inspect-file input").first).to_have_value("zebra")
    page.locator("#tool-inspect-start").click()
    expect(page.locator("#tool-status")).to_contain_text("Finished")
    expect(page.locator("#tool-figures")).to_contain_text("no layer is dead, damaged or missing")
    expect(page.locator("#tool-picture svg")).to_be_visible()
    picture(page, "tools-inspect-phone")
    expect_it_fits(page)
    expect_it_is_readable(page, "#tool", "#tool-forms", "#tool-status", "#tool-figures")
