"""A second concept in the Train tab: chosen in a list, shown in a table, kept over a reload, checked, started."""

from __future__ import annotations

import json
import re
import time

from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_app
from trainer.jobs import kill_run
from trainer.paths import DataFolder
from trainer.runs import list_runs


def test_another_concept_is_added_by_choosing_a_data_set(page: Page, app: App) -> None:
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
    # A folder that is not there is said at the table, and nothing starts.
    page.locator("#train-more-concepts input").first.fill("/no/such folder")
    page.locator("#train-more-concepts input").first.press("Enter")
    expect(page.locator("#train-problems")).to_contain_text("no folder '/no/such folder'")
    expect(page.locator("#train-data-concepts")).to_contain_text("⚠")
    page.locator("#train-fewer-concepts").click()
    expect(page.locator("#train-problems")).not_to_contain_text("no folder")
    page.locator("#train-start").click()
    expect(page.locator("#run-status .badge")).to_be_visible()
    run = next(run for run in list_runs(DataFolder(app.data)) if run.info().kind == "train")
    kill_run(run)
    concepts = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["data"]["concepts"]
    assert [(each["trigger_word"], each["repeats"], each["weight"]) for each in concepts] == [("zib robot", 1, 1.0)]
    assert concepts[0]["dataset"] == "zib-robot"
