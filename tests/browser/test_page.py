"""The page itself: all tabs, both themes, two widths; messages at fields; names that would be scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import EVIL_NAME, ROOT, App, fill_number, open_app, open_tab
from trainer.files import write_json
from trainer.paths import DataFolder
from trainer.runs import create_run

TITLES = ("Dataset", "Train", "Generate", "LoRAs", "Jobs")


def test_every_tab_opens_and_fits_the_width(page: Page) -> None:
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        for title in TITLES:
            open_tab(page, title)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, title
    assert page.locator(".broken-tab").count() == 0


def test_theme_is_toggled_and_remembered(page: Page, app: App) -> None:
    def is_dark(page: Page) -> bool:
        return page.evaluate("document.body.classList.contains('dark')")

    before = is_dark(page)
    page.locator("#theme-toggle").click()
    page.wait_for_function("wanted => document.body.classList.contains('dark') === wanted", arg=not before)
    # Not a reload, which cuts off the first page's stream of answers: a second page of the same browser.
    again = page.context.new_page()
    again.goto(app.url)
    again.wait_for_selector("#inkwash-header")
    again.wait_for_timeout(1000)
    assert is_dark(again) is not before


def test_bad_values_get_their_message_at_the_field(page: Page, app: App) -> None:
    open_tab(page, "Train")
    fill_number(page, "train-adapter-unet-rank", "9999")
    expect(page.locator("#train-adapter-unet-rank")).to_contain_text("512")
    expect(page.locator("#train-adapter-unet-rank.has-error")).to_be_visible()
    expect(page.locator("#train-problems")).to_contain_text("UNet rank")
    fill_number(page, "train-training-steps", "")
    expect(page.locator("#train-training-steps.has-error")).to_be_visible()
    runs = len(list((app.data / "runs").glob("*/run.json")))
    page.locator("#train-start").click()
    expect(page.locator("#train-problems")).to_contain_text("Steps")
    assert len(list((app.data / "runs").glob("*/run.json"))) == runs
    # A combination that only the whole schema sees.
    fill_number(page, "train-adapter-unet-rank", "2")
    fill_number(page, "train-training-steps", "10")
    fill_number(page, "train-adapter-unet-alpha", "1000")
    expect(page.locator("#train-adapter-unet-alpha.has-error")).to_contain_text("8 × rank")
    fill_number(page, "train-adapter-unet-alpha", "2")
    expect(page.locator("#train-problems .problems")).to_have_count(0)
    expect(page.locator("#train-adapter-unet-alpha.has-error")).to_have_count(0)
    # A text that is pasted, not typed, is looked at, too.
    name = page.locator("#train-save-name textarea, #train-save-name input").first
    name.fill("x" * 101)
    expect(page.locator("#train-save-name.has-error")).to_contain_text("100 characters")
    name.fill("")
    expect(page.locator("#train-save-name.has-error")).to_have_count(0)


def test_a_preset_fills_the_form_and_the_chart_of_timesteps_follows_it(page: Page) -> None:
    open_tab(page, "Train")
    page.locator("#train-preset input").first.click()
    page.get_by_role("option", name="SD 1.5 character").first.click()
    expect(page.locator("#train-data-resolution input").first).to_have_value("512")
    page.locator("#train-preset input").first.click()
    page.get_by_role("option", name="Embedded").first.click()
    expect(page.locator("#train-data-resolution input").first).to_have_value("64")
    page.locator("#train-advanced > button").click()
    page.locator("#group-objective > button").first.click()
    bars = page.locator("#train-timesteps rect")
    expect(bars).to_have_count(50)
    before = bars.first.get_attribute("height")
    page.locator("#train-objective-timestep-distribution input").first.click()
    page.get_by_role("option", name="logit_normal").first.click()
    expect(bars.first).not_to_have_attribute("height", str(before))


def test_names_that_are_scripts_are_shown_as_text(page: Page, app: App) -> None:
    # The page's fixture fails on any dialog: these would open one.
    run = create_run(DataFolder(app.data), "train", f"{EVIL_NAME}<script>alert(4)</script>", {"note": EVIL_NAME})
    write_json(run.folder / "events.jsonl", None)
    (run.folder / "events.jsonl").write_text(
        '{"type": "warning", "message": "<img src=x onerror=alert(5)>"}\n'
        '{"type": "picture", "path": "samples/\\"onerror=alert(6).png", "prompt": "\\"><img src=x onerror=alert(7)>"}\n'
        '{"type": "failed", "error": {"code": "dataset", "message": "<img src=x onerror=alert(8)>"}}\n'
    )
    page.watch.ignored = ("Failed to load resource",)  # type: ignore[attr-defined]
    open_tab(page, "Train")
    page.locator("#run-picker input").first.click()
    page.get_by_role("option", name="alert(4)").first.click()
    expect(page.locator("#run-status")).to_contain_text("alert(8)")
    expect(page.locator("#run-status .title")).to_contain_text("<script>alert(4)</script>")
    open_tab(page, "Jobs")
    page.locator("#jobs-table .virtual-row", has_text="alert(4)").first.get_by_role("gridcell").nth(1).click()
    expect(page.locator("#job-detail")).to_contain_text("<img src=x onerror=alert(8)>")
    page.wait_for_timeout(500)
    assert page.locator("img[src='x']").count() == 0


def test_second_app_points_to_the_first(app: App) -> None:
    command = [sys.executable, "-m", "app.main", "--data-dir", str(app.data), "--no-browser"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0
    assert app.url in result.stdout


def test_with_a_password_the_page_works_for_who_knows_it(browser: Browser, tmp_path: Path) -> None:
    app = App(tmp_path, "--password", "a long password")
    app.start()
    try:
        with pytest.raises(HTTPError, match="401"):
            urlopen(app.url)
        context = browser.new_context(http_credentials={"username": "me", "password": "a long password"})
        page = context.new_page()
        open_app(page, app)
        fill_number(page, "train-training-steps", "")
        expect(page.locator("#train-training-steps.has-error")).to_be_visible()
        context.close()
    finally:
        app.end()


def test_busy_port_is_refused_with_a_sentence(app: App, tmp_path: Path) -> None:
    port = app.url.rsplit(":", 1)[1].strip("/")
    command = [sys.executable, "-m", "app.main", "--data-dir", str(tmp_path), "--no-browser", "--port", port]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 6
    assert f"Port {port} cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
