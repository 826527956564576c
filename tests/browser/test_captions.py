"""Captions of a data set by clicks and keys: filter by a tag, rename it, write, undo."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from tests import zoo
from tests.browser.conftest import App, open_tab
from trainer.dataset.captioned import captioned_pictures
from trainer.dataset.store import DatasetStore
from trainer.paths import DataFolder

_EVIL = "<img src=x onerror=alert(1)> ${alert(2)} {{this}}"


def kept(store: DatasetStore, name: str) -> dict[str, str]:
    return {picture.name: picture.text for picture in captioned_pictures(store, name)}


def test_captions_are_filtered_renamed_written_and_undone(page: Page, app: App, tmp_path: Path) -> None:
    folder = tmp_path / "hats"
    folder.mkdir()
    for index in range(14):
        zoo.good(folder / f"{index}.png", f"{'red hat' if index < 3 else 'cap'}, zib, {_EVIL}", index, (48, 32))
    store = DatasetStore(DataFolder(app.data))
    name = store.link(folder).name
    open_tab(page, "Dataset")
    page.locator("#dataset-choice input").first.click()
    page.get_by_role("option", name="hats").first.click()
    expect(page.locator("#dataset-summary")).to_contain_text("14 pictures")
    page.locator("#dataset-sections").get_by_role("tab", name="Captions").click()
    rows = page.locator("#captions-grid .caption-row textarea")
    expect(rows).to_have_count(12)
    expect(rows.first).to_have_value(f"red hat, zib, {_EVIL}")
    expect(page.locator("#captions-grid .caption-tokens").first).to_contain_text("tokens")

    # Filter by a tag, and rename it in all that the filter finds.
    chip = page.locator('#captions-tags .tag-chip[data-tag="red hat"]')
    expect(chip).to_contain_text("3")
    chip.click()
    expect(rows).to_have_count(3)
    page.locator("#captions-edit-open > button").first.click()
    page.locator("#captions-what textarea, #captions-what input").first.fill("red hat")
    page.locator("#captions-new textarea, #captions-new input").first.fill("blue hat")
    page.locator("#captions-preview").click()
    expect(page.locator("#captions-plan")).to_contain_text("3 of 3 captions would change")
    assert kept(store, name)["1.png"].startswith("red hat")
    page.locator("#captions-apply").click()
    expect(page.locator('#captions-tags .tag-chip[data-tag="red hat"]')).to_contain_text("0")
    page.locator('#captions-tags .tag-chip[data-tag="red hat"]').click()
    expect(rows).to_have_count(12)
    page.locator('#captions-tags .tag-chip[data-tag="red hat"]').click()
    expect(rows.nth(1)).to_have_value(f"blue hat, zib, {_EVIL}")

    # Written by hand, kept as the keyboard goes on; a second line is a second caption.
    rows.first.fill("blue hat, night\na hat at night")
    expect(page.locator("#captions-grid .caption-tokens").first).to_contain_text("2 captions")
    rows.first.press("PageDown")
    expect(rows.nth(1)).to_be_focused()
    expect(page.locator("#captions-grid .caption-state").first).to_have_text("saved")
    assert kept(store, name)["0.png"] == "blue hat, night\na hat at night"
    expect(page.locator('#captions-tags .tag-chip[data-tag="night"]')).to_be_visible()
    rows.nth(1).fill("by the key")
    rows.nth(1).press("Control+s")
    expect(page.locator("#captions-grid .caption-state").nth(1)).to_have_text("saved")
    expect(rows.nth(1)).to_be_focused()
    rows.nth(11).fill("last of the page")
    rows.nth(11).press("PageDown")
    expect(rows).to_have_count(2)
    expect(rows.first).to_be_focused()
    assert kept(store, name)["11.png"] == "last of the page"

    # Undo and redo show in the fields.
    page.locator("#captions-page-back").click()
    expect(rows.nth(11)).to_have_value("last of the page")
    for caption in (f"cap, zib, {_EVIL}", None):
        page.locator("#dataset-undo").click()
        if caption:
            expect(rows.nth(11)).to_have_value(caption)
    expect(rows.nth(1)).to_have_value(f"blue hat, zib, {_EVIL}")
    page.locator("#dataset-redo").click()
    expect(rows.nth(1)).to_have_value("by the key")
