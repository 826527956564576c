"""A picture to start from: dropped on the editor, and a mask painted over it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_tab

KEPT = re.compile(r"^[0-9a-f]{20}\.png$")


@pytest.mark.slow
def test_a_dropped_picture_is_started_from_where_it_is_painted(page: Page, app: App, tmp_path: Path) -> None:
    picture = tmp_path / "house.png"
    Image.effect_noise((128, 96), 60).convert("RGB").save(picture)
    (app.data / "upscalers").mkdir(exist_ok=True)
    (app.data / "upscalers" / "4x-mine.pth").touch()
    open_tab(page, "Generate")
    page.locator("#gen-start-picture > button").click()
    use = page.locator("#gen-start-use")
    use.click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("no picture in the editor")
    page.locator("#gen-editor input[type=file]").first.set_input_files(picture)
    init, mask = (page.locator(f"#gen-{name} textarea, #gen-{name} input").first for name in ("init-image", "mask"))
    expect(page.locator("#gen-editor canvas").first).to_be_visible()
    expect(page.locator("#gen-editor .upload-container, #gen-editor [data-testid=upload]")).to_have_count(0)
    use.click()
    expect(init).to_have_value(KEPT)
    expect(mask).to_have_value("")
    canvas = page.locator("#gen-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 - 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    use.click()
    expect(mask).to_have_value(KEPT)
    with Image.open(app.data / "inputs" / mask.input_value()) as drawn:
        assert drawn.size == (128, 96)
        assert 0 < sum(value > 0 for value in drawn.tobytes()) < 128 * 96
    page.locator("#gen-start-drop").click()
    expect(init).to_have_value("")
    expect(mask).to_have_value("")

    page.locator("#gen-larger > button").click()
    upscaler = page.locator("#gen-hires-upscaler input").first
    expect(upscaler).to_have_value("latent")
    upscaler.click()
    page.get_by_role("option", name="4x-mine").click()
    expect(upscaler).to_have_value("4x-mine")
