"""Captions by clicks: the built-in captioner is tried, captions a set, and undo takes all of it back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_tab
from trainer.dataset.store import DatasetStore
from trainer.paths import DataFolder


@pytest.mark.slow
def test_a_set_is_captioned_and_undone(page: Page, app: App, picture_zip: Path) -> None:
    store = DatasetStore(DataFolder(app.data))
    store.create_from("Striped", [picture_zip], trigger_word="zsy")
    before = {facts.name: facts.caption for facts in store.scan("Striped").pictures}
    open_tab(page, "Dataset")
    page.locator("#dataset-choice input").click()
    page.get_by_role("option", name="Striped (6)").click()
    expect(page.locator("#dataset-summary")).to_contain_text("6 pictures, 6 captions")
    page.locator("#dataset-sections").get_by_role("tab", name="Auto-caption").click()

    # All have a caption: that is said before anything starts, in words that a script cannot be in.
    page.locator("#caption-start").click()
    expect(page.get_by_text("There is nothing to caption in this data set.")).to_be_visible()
    page.locator("#caption-existing input").click()
    page.get_by_role("option", name="overwrite").click()
    page.locator("#caption-wording > button").first.click()
    template = page.locator("#caption-wording-template textarea, #caption-wording-template input").first
    template.fill("nothing")
    template.blur()  # a text that is pasted is looked at when it is left
    expect(page.locator("#caption-problems")).to_contain_text("needs {caption}")
    template.fill("{trigger}: {caption}")
    template.blur()
    expect(page.locator("#caption-problems")).not_to_contain_text("needs {caption}")

    page.locator("#caption-try").click()
    expect(page.locator("#caption-result")).to_contain_text("3 pictures tried; nothing is changed")
    expect(page.locator("#caption-result")).to_contain_text("zsy: picture, square picture")
    assert {facts.name: facts.caption for facts in store.scan("Striped").pictures} == before
    page.locator("#caption-start").click()
    expect(page.locator("#caption-result")).to_contain_text("6 pictures captioned")
    assert all(str(facts.caption).startswith("zsy: picture") for facts in store.scan("Striped").pictures)
    page.locator("#dataset-sections").get_by_role("tab", name="Pictures").click()
    expect(page.locator("#dataset-caption textarea")).to_be_visible()
    expect(page.locator("#dataset-caption textarea")).to_have_value(re.compile(r"^zsy: picture"))

    page.locator("#dataset-undo").click()
    expect(page.locator("#dataset-caption textarea")).to_have_value(re.compile(r"^stripes number \d <b onclick"))
    assert {facts.name: facts.caption for facts in store.scan("Striped").pictures} == before
