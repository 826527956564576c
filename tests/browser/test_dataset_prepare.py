"""What is trained of each picture, in the browser: a crop and a mask are drawn, the preview follows, and Undo takes them back."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import open_tab
from tests.prepare_pictures import make_pictures


def paint(page: Page, picture: Locator) -> None:
    """Draw a stroke over the left of a picture."""
    box = picture.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.8, steps=3)
    page.mouse.up()


def test_a_crop_and_a_mask_are_drawn_a_turn_takes_them_along_and_undo_takes_all_back(
    page: Page, tmp_path: Path
) -> None:
    folder = make_pictures(tmp_path / "pictures")
    open_tab(page, "Dataset")
    page.locator("#dataset-link-open > button").first.click()
    page.locator("#dataset-link-path input, #dataset-link-path textarea").first.fill(str(folder))
    page.locator("#dataset-link").click()
    expect(page.locator("#dataset-summary")).to_contain_text("5 pictures")
    open_tab(page, "Prepare")
    trained, fields = page.locator("#prepare-trained"), page.locator("#prepare-right input")
    expect(page.locator("#prepare-summary")).to_contain_text("5 pictures in")
    page.locator("#prepare-list").get_by_text("wide.png").click()
    expect(trained).to_contain_text("wide.png")
    expect(fields).to_have_value("200")
    before = trained.locator("img").get_attribute("src")
    picture = page.locator("#prepare-stage img")
    box = picture.bounding_box()
    assert box is not None
    # The left half, drawn from its upper right corner to the lower left one, and beyond the picture's edge.
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 1)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] - 15, box["y"] + box["height"] + 15)
    page.mouse.up()
    expect(fields).to_have_value("100")
    expect(page.locator("#prepare-bottom input")).to_have_value("100")
    page.locator("#prepare-top input").fill("0")
    page.locator("#prepare-crop").click()
    expect(page.locator("#prepare-list")).to_contain_text("crop")
    expect(page.locator("#prepare-stage .crop")).to_have_attribute("width", "100")
    assert trained.locator("img").get_attribute("src") != before
    page.locator("#dataset-undo").click()
    expect(page.locator("#prepare-stage .crop")).to_have_count(0)
    expect(trained.locator("img")).to_have_attribute("src", before or "")
    expect(fields).to_have_value("200")
    # Its mask file says 40 percent; a stroke over the left makes it more, and an erased one less.
    expect(trained).to_contain_text("40% of the whole picture is subject")
    page.get_by_role("button", name="Paint the subject").click()
    paint(page, picture)
    page.get_by_role("button", name="Save the mask").click()
    expect(trained).not_to_contain_text("40% of the whole picture is subject")
    expect(trained).to_contain_text("is subject")
    page.locator("#dataset-undo").click()
    expect(trained).to_contain_text("40% of the whole picture is subject")
    # Turned with its mask; what was painted and not saved is turned along, and then saved as it lies.
    picture.scroll_into_view_if_needed()
    paint(page, picture)
    expect(page.get_by_text("not saved yet")).to_be_visible()
    page.get_by_role("button", name="Turn to the right").click()
    expect(fields).to_have_value("100")
    expect(page.locator("#prepare-bottom input")).to_have_value("200")
    expect(trained).to_contain_text("40% of the whole picture is subject")
    page.get_by_role("button", name="Save the mask").click()
    expect(trained).not_to_contain_text("40% of the whole picture is subject")
    expect(page.get_by_text("not saved yet")).to_be_hidden()
    page.locator("#dataset-undo").click()
    expect(trained).to_contain_text("40% of the whole picture is subject")
    page.locator("#dataset-undo").click()
    expect(fields).to_have_value("200")
    page.locator("#prepare-fill").click()
    expect(trained.locator("img")).not_to_have_attribute("src", before or "")
    page.locator("#dataset-undo").click()
    expect(trained.locator("img")).to_have_attribute("src", before or "")
