"""What belongs to one data set stays with it while one works in another, where pictures have the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_tab
from tests.browser.test_dataset_flow import import_that_works, make_zip
from tests.browser.test_dataset_prepare import paint
from tests.leaves import leaves
from trainer.dataset.record import load_record
from trainer.dataset.store import DatasetStore
from trainer.paths import DataFolder
from trainer.runs import list_runs


@pytest.fixture
def store(page: Page, app: App, tmp_path: Path) -> DatasetStore:
    """Two data sets, "first" and "second", whose pictures have the same names; the page shows the first."""
    store = DatasetStore(DataFolder(app.data))
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(3):
            picture = leaves(index, 96).crop((0, 0, 96, 64))
            picture.save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(f"leaf {index}, {name}", encoding="utf-8")
        if name not in {info.title for info in store.list()}:
            store.create_from(name, [folder])
    open_tab(page, "Dataset")
    choose(page, "first")
    return store


def choose(page: Page, name: str) -> None:
    """Choose a data set and wait until it is shown."""
    page.locator("#dataset-choice input").first.click()
    page.get_by_role("option", name=name).first.click()
    expect(page.locator("#dataset-summary")).to_contain_text(name)


def test_unsaved_paint_is_offered_for_its_own_picture_only_and_kept_until_it_is_saved(
    page: Page, app: App, store: DatasetStore
) -> None:
    open_tab(page, "Prepare")
    trained, unsaved = page.locator("#prepare-trained"), page.get_by_text("not saved yet")
    expect(trained).to_contain_text("0.png")
    page.get_by_role("button", name="Paint the subject").click()
    paint(page, page.locator("#prepare-stage img"))
    expect(unsaved).to_be_visible()
    choose(page, "second")
    expect(page.locator("#prepare-stage .prepare-stage")).to_have_attribute("data-set", "second")
    expect(unsaved).to_be_hidden()
    choose(page, "first")
    expect(page.locator("#prepare-stage .prepare-stage")).to_have_attribute("data-set", "first")
    expect(unsaved).to_be_visible()
    # What the server refuses is told, and what was painted is not lost with it.
    record = store.get("first").record
    assert record is not None
    file = record / "dataset.json"
    sound = file.read_bytes()
    told = page.locator("#prepare-stage .unsaved")
    file.write_bytes(b"{")
    try:
        page.get_by_role("button", name="Save the mask").click()
        expect(told).to_contain_text("is damaged")
    finally:
        file.write_bytes(sound)
    page.get_by_role("button", name="Save the mask").click()
    expect(trained).to_contain_text("is subject")
    expect(told).to_be_hidden()
    masks = {name: load_record(app.data / "datasets" / name).masks for name in ("first", "second")}
    assert (list(masks["first"]), list(masks["second"])) == (["0.png"], [])


def test_proposals_wait_in_their_own_data_set(page: Page, store: DatasetStore) -> None:
    open_tab(page, "Prepare")
    expect(page.locator("#prepare-trained")).to_contain_text("0.png")
    page.locator("#prepare-proposals > button").first.click()
    page.locator("#prepare-way").get_by_text("Detail", exact=False).first.click()
    page.locator("#prepare-close input").check()
    said, accept = page.locator("#prepare-status"), page.locator("#prepare-accept-all")
    expect(accept).to_be_disabled()
    page.locator("#prepare-propose-all").click()
    expect(said).to_contain_text("Proposed for")
    expect(accept).to_be_enabled()
    expect(page.locator("#prepare-stage .proposed")).to_have_count(1)
    choose(page, "second")
    expect(said).to_be_empty()
    expect(accept).to_be_disabled()
    expect(page.locator("#prepare-stage .proposed")).to_have_count(0)
    choose(page, "first")
    expect(said).to_contain_text("Proposed for")
    accept.click()
    expect(page.locator("#prepare-list")).to_contain_text("crop")
    expect(accept).to_be_disabled()
    expect(said).to_be_empty()
    page.locator("#dataset-undo").click()
    expect(page.locator("#prepare-list")).not_to_contain_text("crop")


def test_lists_of_captions_go_when_they_are_no_longer_true(page: Page, store: DatasetStore) -> None:
    store.set_captions("first", {"0.png": "changed, first"})
    open_tab(page, "Captions")
    page.locator("#captions-files-open > button").first.click()
    page.locator("#captions-edit-open > button").first.click()
    plan, differences = page.locator("#captions-plan"), page.locator("#captions-differences")

    def ask() -> None:
        page.locator("#captions-what textarea, #captions-what input").first.fill("first")
        page.locator("#captions-new textarea, #captions-new input").first.fill("last")
        page.locator("#captions-preview").click()
        expect(plan).to_contain_text("captions would change")
        page.locator("#captions-compare").click()
        expect(differences).to_contain_text("changed, first")

    ask()
    choose(page, "second")
    expect(plan).to_be_empty()
    expect(differences).to_be_empty()
    choose(page, "first")
    ask()
    rows = page.locator("#captions-grid .caption-row textarea")
    rows.nth(1).fill("leaf 1, edited")
    rows.nth(1).press("Control+s")
    expect(plan).to_be_empty()
    expect(differences).to_be_empty()
    ask()
    # Another filter finds other pictures: only the preview was about those.
    page.locator("#captions-text textarea, #captions-text input").first.fill("edited")
    page.locator("#captions-text textarea, #captions-text input").first.press("Enter")
    expect(rows).to_have_count(1)
    expect(plan).to_be_empty()
    expect(differences).to_contain_text("changed, first")


def test_one_stays_in_the_set_one_works_in_and_a_double_click_is_one_click(
    page: Page, app: App, store: DatasetStore, tmp_path: Path
) -> None:
    import psutil

    page.locator("#dataset-add-open > button").first.click()
    page.locator("#dataset-add input[type=file]").set_input_files(make_zip(tmp_path / "more.zip"))
    data = DataFolder(app.data)
    process = psutil.Process(import_that_works(data).pid())
    process.suspend()
    try:
        choose(page, "second")
    finally:
        process.resume()
    expect(page.get_by_test_id("toast-body").first).to_contain_text("5 pictures added")
    expect(page.locator("#dataset-summary")).to_contain_text("second")
    assert store.get("first").num_pictures == 8

    before = len(list_runs(data))
    page.locator("#dataset-new > button").first.click()
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Twice")
    page.locator("#dataset-drop input[type=file]").set_input_files(make_zip(tmp_path / "leaves.zip"))
    expect(page.locator("#dataset-drop").get_by_role("row", name="leaves.zip")).to_be_visible()
    page.locator("#dataset-create").dblclick()
    expect(page.locator("#dataset-summary")).to_contain_text("Twice")
    assert len(list_runs(data)) == before + 1
    expect(page.get_by_text("That did not work")).to_have_count(0)
