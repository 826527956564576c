"""What a user does, by clicks: pictures in, a run that survives refresh and a killed app, a LoRA out, pictures with it."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import App, Watch, fill_number, open_app, open_tab
from trainer.lora_files.header import read_header
from trainer.paths import DataFolder
from trainer.runs import Run, RunState, list_runs

_LONG = 120_000


def newest_run(app: App, kind: str) -> Run:
    return next(run for run in list_runs(DataFolder(app.data)) if run.info().kind == kind)


def choose(page: Page, element: str, title: str | re.Pattern[str]) -> None:
    """Choose in a dropdown."""
    page.locator(f"#{element} input").first.click()
    page.get_by_role("option", name=title).first.click()


def set_smallest(page: Page, *, steps: int) -> None:
    """The quickest run there is."""
    fill_number(page, "train-training-steps", str(steps))
    fill_number(page, "train-training-batch-size", "2")
    fill_number(page, "train-adapter-unet-rank", "2")
    fill_number(page, "train-adapter-unet-alpha", "2")
    page.locator("#train-preview-prompts textarea").fill("stripes in blue\n<script>alert(3)</script>")
    page.locator("#train-advanced > button").first.click()
    for group, fields in {
        "group-preview": {"train-preview-num-inference-steps": "2", "train-preview-every": "0"},
        "group-validation": {"train-validation-every": "0", "train-validation-num-pictures": "1"},
    }.items():
        page.locator(f"#{group} > button").first.click()
        for element, value in fields.items():
            fill_number(page, element, value)
    page.locator("#train-advanced > button").first.click()


def start(page: Page, app: App) -> Run:
    before = {run.id for run in list_runs(DataFolder(app.data))}
    page.locator("#train-start").click()
    expect(page.locator("#run-status .badge")).to_be_visible()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        new = [run for run in list_runs(DataFolder(app.data)) if run.id not in before]
        if new:
            return new[0]
        time.sleep(0.1)
    raise AssertionError("no run was made")


def test_whole_loop_by_clicks(page: Page, app: App, watch: Watch, picture_zip: Path, tmp_path: Path) -> None:
    watch.ignored = ("AbortError",)  # the reload below cuts off polls that are under way
    open_tab(page, "Dataset")
    page.locator("#dataset-new > button").first.click()
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Stripes")
    page.locator("#dataset-drop input[type=file]").set_input_files(picture_zip)
    expect(page.locator("#dataset-drop")).to_contain_text("stripes.zip")
    page.locator("#dataset-create").click()
    expect(page.locator("#dataset-summary")).to_contain_text("Stripes", timeout=30_000)
    expect(page.locator("#dataset-gallery img").nth(5)).to_be_visible()
    page.locator("#dataset-train").click()

    expect(page.locator("#train-data-dataset input").first).to_have_value(re.compile("Stripes"))
    set_smallest(page, steps=40)
    expect(page.locator("#train-plan")).to_contain_text("6 pictures")
    run = start(page, app)
    expect(page.locator("#run-status .badge.running")).to_be_visible(timeout=_LONG)
    expect(page.locator("#run-samples img").first).to_be_visible(timeout=_LONG)

    page.reload()
    expect(page.get_by_role("tab", name="Train", exact=True)).to_have_attribute("aria-selected", "true")
    open_app(page, app)
    open_tab(page, "Train")
    expect(page.locator("#run-samples img").first).to_be_visible()
    expect(page.locator("#train-training-steps input").first).to_have_value("40")
    expect(page.locator("#run-status .badge.finished")).to_be_visible(timeout=_LONG)
    expect(page.locator("#run-status")).to_contain_text("40 / 40")
    expect(page.locator("#run-chart polyline.smooth")).to_be_attached()
    assert page.locator("#run-chart circle.validation").count() >= 2
    # Samples at the start and at the end, for two prompts.
    expect(page.locator("#run-samples img")).to_have_count(4)
    expect(page.locator("#run-samples thead")).to_contain_text("<script>alert(3)</script>")
    assert run.state() is RunState.FINISHED

    with page.expect_download() as started:
        page.locator("#run-download").click()
    file = tmp_path / "downloaded.safetensors"
    started.value.save_as(file)
    _, tensors = read_header(file)
    assert any(name.startswith("lora_unet_") and name.endswith(".lora_down.weight") for name in tensors)

    page.locator("#run-try").click()
    expect(page.locator(".lora-row").first).to_contain_text("Stripes", timeout=_LONG)
    fill_number(page, "gen-num-inference-steps", "2")
    page.locator("#gen-seed textarea, #gen-seed input").first.fill("7")
    page.locator("#gen-prompt textarea").fill("stripes in red")
    page.locator("#lora-unet-0 input[type=number]").fill("0.6")
    page.locator("#lora-unet-0 input[type=number]").press("Tab")
    page.locator("#gen-start").click()
    expect(page.locator("#gen-gallery img").first).to_be_visible(timeout=_LONG)
    config = newest_run(app, "generate").config()
    assert config["prompt"] == "stripes in red"
    assert config["seed"] == 7
    assert [lora["unet_weight"] for lora in config["loras"]] == [0.6]

    page.locator("#gen-prompt textarea").fill("something else")
    page.locator("#gen-gallery button.thumbnail-item, #gen-gallery .grid-wrap button").first.click()
    expect(page.locator("#gen-recipe")).to_contain_text("stripes in red")
    page.locator("#gen-back").click()
    expect(page.locator("#gen-prompt textarea")).to_have_value("stripes in red")
    expect(page.locator("#lora-unet-0 input[type=number]")).to_have_value("0.6")

    open_tab(page, "LoRAs")
    expect(page.locator("#tab-loras").get_by_text("Stripes").first).to_be_visible()


def test_killed_app_shows_the_run_again_untouched(page: Page, app: App, watch: Watch) -> None:
    # While the app is down the page's polls must fail.
    watch.ignored = ("ERR_CONNECTION", "Failed to fetch", "Failed to load resource", "Connection", "network error")
    open_tab(page, "Train")
    set_smallest(page, steps=3000)
    run = start(page, app)
    expect(page.locator("#run-status")).to_contain_text(re.compile(r"[1-9]\d* / 3000"), timeout=_LONG)
    pid = run.pid()
    app.end(by_force=True)
    assert run.state() is RunState.RUNNING
    app.start()
    open_app(page, app)
    open_tab(page, "Train")
    expect(page.locator("#run-status .badge.running")).to_be_visible(timeout=30_000)
    assert run.pid() == pid
    page.locator("#run-stop").click()
    expect(page.locator("#run-status .badge.stopped")).to_be_visible(timeout=_LONG)
    assert any(run.checkpoints.iterdir())
    expect(page.locator("#run-resume")).to_be_visible()

    page.locator("#run-resume").click()
    expect(page.locator("#run-status .badge.running")).to_be_visible(timeout=_LONG)
    page.locator("#run-stop").click()
    expect(page.locator("#run-status .badge.stopped")).to_be_visible(timeout=_LONG)

    open_tab(page, "Jobs")
    page.locator("#jobs-table .virtual-row").first.get_by_role("gridcell").nth(1).click()
    expect(page.locator("#job-detail")).to_contain_text("Stopped")
    page.locator("#job-delete").click()
    page.locator("#job-delete-yes").click()
    expect(page.locator("#job-detail")).to_contain_text("No job is chosen")
    assert not run.folder.exists()
    assert (app.data / "trash" / run.id / "checkpoints").is_dir()
