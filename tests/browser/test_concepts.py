"""A second concept in the Train tab: chosen in a list, shown in a table, kept over a reload, checked, started."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_app
from trainer.jobs import kill_run
from trainer.paths import DataFolder
from trainer.runs import list_runs


@pytest.mark.slow
def test_another_concept_is_added_by_choosing_a_data_set(page: Page, app: App, tmp_path: Path) -> None:
    plan = page.locator("#train-plan")
    page.locator("#train-concepts-open > button").first.click()
    page.locator("#train-more-concepts input").first.click()
    page.get_by_role("option", name=re.compile("robot")).click()
    expect(plan).to_contain_text("of 2 concepts")
    table = page.locator("#train-data-concepts")
    expect(table).to_contain_text("Trigger word")
    # The draft keeps it.
    time.sleep(1)
    open_app(page, app)
    expect(page.locator("#train-plan")).to_contain_text("of 2 concepts")
    page.locator("#train-concepts-open > button").first.click()
    # A folder that is not there is refused as it is entered; one that is there is added, and taken out again.
    more = page.locator("#train-more-concepts input").first
    more.fill("/no/such folder")
    more.press("Enter")
    expect(page.get_by_test_id("toast-body")).to_contain_text("no folder '/no/such folder'")
    expect(table).not_to_contain_text("such folder")
    Image.new("RGB", (80, 80), (200, 40, 40)).save(tmp_path / "one.png")
    more.fill(str(tmp_path))
    more.press("Enter")
    expect(plan).to_contain_text("of 3 concepts")
    page.locator("#train-fewer-concepts").click()
    expect(plan).to_contain_text("of 2 concepts")
    page.locator("#train-start").click()
    expect(page.locator("#run-status .badge")).to_be_visible()
    run = next(run for run in list_runs(DataFolder(app.data)) if run.info().kind == "train")
    kill_run(run)
    concepts = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["data"]["concepts"]
    assert [(each["trigger_word"], each["repeats"], each["weight"]) for each in concepts] == [("zib robot", 1, 1.0)]
    assert concepts[0]["dataset"] == "zib-robot"
