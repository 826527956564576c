"""The Models tab by clicks: what a model is, another program's folder in place, on to Train; a download that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

from tests.browser.conftest import App, open_tab

NAME = "xl <img src=x onerror=alert(9)>"


@pytest.fixture
def other_program(tmp_path: Path) -> Path:
    """An A1111 folder with a model that predicts v, whose name would be a script, and an inpainting model."""
    folder = tmp_path / "webui" / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (2, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (4,),
        "conditioner.embedders.1.model.ln_final.bias": (4,),
        "first_stage_model.encoder.conv_in.bias": (4,),
    }
    tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(
        {**tensors, "v_pred": np.zeros((), np.float16), "ztsnr": np.zeros((), np.float16)},
        folder / f"{NAME}.safetensors",
    )
    channels = np.zeros((2, 9, 3, 3), np.float16)
    save_file({**tensors, "model.diffusion_model.input_blocks.0.0.weight": channels}, folder / "fill.safetensors")
    return tmp_path / "webui"


def choose(page: Page, text: str) -> None:
    page.locator("#model-table .virtual-row", has_text=text).first.get_by_role("gridcell").first.click()


def test_models_of_another_program_are_told_apart_and_used(page: Page, app: App, other_program: Path) -> None:
    before = sorted(other_program.rglob("*"))
    open_tab(page, "Models")
    expect(page.locator("#model-table")).to_contain_text("Inkwash Tiny")
    page.locator("#model-places > button").first.click()
    page.locator("#model-folder textarea, #model-folder input").first.fill(str(other_program / "nowhere"))
    page.locator("#model-folder-add").click()
    expect(page.locator("body")).to_contain_text("There is no such folder.")
    page.locator("#model-folder textarea, #model-folder input").first.fill(str(other_program))
    page.locator("#model-folder-add").click()
    expect(page.locator("#model-table")).to_contain_text("velocity (v), zero terminal SNR")

    choose(page, "Stable Diffusion XL, inpainting")
    expect(page.locator("#model-about")).to_contain_text("cannot be trained here")
    expect(page.locator("#model-train")).to_be_disabled()
    expect(page.locator("#model-generate")).to_be_enabled()
    choose(page, NAME)
    expect(page.locator("#model-about")).to_contain_text("velocity (v)")
    expect(page.locator("#model-about")).to_contain_text("1024 pixels a side")
    page.locator("#model-hash").click()
    expect(page.locator("#model-about")).to_contain_text("SHA-256")
    page.locator("#model-train").click()
    expect(page.locator("#train-data-resolution input").first).to_have_value("1024")
    expect(page.locator("#train-model-base input").first).to_have_value(
        f"{NAME} (Stable Diffusion XL, predicts v, zero terminal SNR)"
    )
    assert sorted(other_program.rglob("*")) == before, "nothing is written there"

    open_tab(page, "Models")
    page.locator("#model-folder-forget").click()
    expect(page.locator("#model-table")).not_to_contain_text("velocity")
    choose(page, "Inkwash Tiny")
    page.locator("#model-generate").click()
    expect(page.locator("#gen-base input").first).to_have_value("Inkwash Tiny")


def test_a_download_that_cannot_be_is_told_in_a_sentence(page: Page) -> None:
    # Nothing listens there, so that the test uses no network.
    open_tab(page, "Models")
    page.locator("#model-download > button").first.click()
    page.locator("#model-id textarea, #model-id input").first.fill("no id")
    page.locator("#model-fetch").click()
    expect(page.locator("body")).to_contain_text("A setting cannot be used.")
    page.locator("#model-id textarea, #model-id input").first.fill("owner/name")
    page.locator("#model-fetch").click()
    expect(page.locator("#model-status")).to_contain_text("The model's server cannot be reached", timeout=60_000)
    open_tab(page, "Jobs")
    expect(page.locator("#jobs-table")).to_contain_text("owner/name")
