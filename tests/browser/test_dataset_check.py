"""The check of a data set from a zip: its findings are fixed, taken back and ignored."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import open_tab
from tests.leaves import leaves


@pytest.fixture
def faulty_zip(tmp_path: Path) -> Path:
    """Four good pictures, a copy of one, and one with bars."""
    path = tmp_path / "faulty.zip"
    boxed = Image.new("RGB", (128, 176), (0, 0, 0))
    boxed.paste(leaves(9, 128), (0, 24))
    pictures = {f"leaf {index}": leaves(index, 128) for index in range(4)}
    pictures |= {"small copy": leaves(0, 128).resize((120, 120)), "boxed": boxed}
    with zipfile.ZipFile(path, "w") as archive:
        for stem, image in pictures.items():
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            archive.writestr(f"{stem}.png", buffer.getvalue())
            archive.writestr(f"{stem}.txt", f"zsy, leaves of {stem.split()[-1]}")
    return path


@pytest.mark.slow
def test_what_the_check_finds_is_fixed_and_taken_back(page: Page, faulty_zip: Path) -> None:
    open_tab(page, "Dataset")
    page.locator("#dataset-new > button").first.click()
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Faulty")
    page.locator("#dataset-drop input[type=file]").set_input_files(faulty_zip)
    expect(page.locator("#dataset-drop")).to_contain_text("faulty.zip")
    page.locator("#dataset-create").click()
    expect(page.locator("#dataset-summary")).to_contain_text("Faulty")
    open_tab(page, "Check")
    status, kinds, tiles = (
        page.locator("#check-status"),
        page.locator("#check-kind"),
        page.locator("#check-pictures img"),
    )
    expect(status).to_contain_text("Nothing is changed by looking")
    page.locator("#check-resolution input").fill("96")
    page.locator("#check-start").click()
    expect(kinds).to_contain_text("Duplicates (1)")
    expect(kinds).to_contain_text("Borders (1)")
    expect(status).to_contain_text("leave 1 of 6 pictures out")
    # The two that show the same stand side by side, the better one first.
    expect(tiles).to_have_count(2)
    expect(page.locator("#check-message")).to_contain_text("leaf 0.png is the best to keep")
    page.locator("#check-pictures button:has(img)").nth(1).click()
    expect(page.locator("#check-fix")).to_have_text("Keep small copy.png alone")
    page.locator("#check-pictures button:has(img)").nth(0).click()
    page.locator("#check-fix").click()
    expect(kinds).not_to_contain_text("Duplicates")
    expect(page.locator("#dataset-summary")).to_contain_text("5 pictures")
    expect(page.locator("#check-message")).to_contain_text("boxed.png")
    page.locator("#check-ignore").click()
    expect(status).to_contain_text("findings ignored")
    expect(kinds).not_to_contain_text("Borders")
    page.locator("#dataset-undo").click()
    expect(kinds).to_contain_text("Borders (1)")  # a click while the first one is at work would be dropped
    page.locator("#dataset-undo").click()
    expect(kinds).to_contain_text("Duplicates (1)")
    expect(page.locator("#dataset-summary")).to_contain_text("6 pictures")
    page.get_by_role("radio", name="Borders (1)").click()
    expect(page.locator("#check-list")).to_contain_text("has plain bars")
    expect(tiles).to_have_count(1)
