"""A data set from a zip to a training: what the check finds is fixed, tags are changed in bulk and taken back, then it is trained on."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, fill_number, open_tab
from tests.leaves import leaves
from trainer.paths import DataFolder
from trainer.runs import list_runs


def make_zip(path: Path) -> Path:
    """Four pictures and a smaller copy of the first."""
    pictures = {f"leaf {index}": leaves(index, 96) for index in range(4)}
    pictures["small copy"] = leaves(0, 96).resize((90, 90), Image.Resampling.LANCZOS)
    with zipfile.ZipFile(path, "w") as archive:
        for stem, image in pictures.items():
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            archive.writestr(f"{stem}.png", buffer.getvalue())
            archive.writestr(f"{stem}.txt", f"zsy, green leaves, {stem.split()[-1]}")
    return path


def test_from_a_zip_to_a_training(page: Page, app: App, tmp_path: Path) -> None:
    summary = page.locator("#dataset-summary")
    open_tab(page, "Dataset")
    page.locator("#dataset-new > button").first.click()
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Leaves")
    page.locator("#dataset-drop input[type=file]").set_input_files(make_zip(tmp_path / "leaves.zip"))
    expect(page.locator("#dataset-drop")).to_contain_text("leaves.zip")
    page.locator("#dataset-create").click()
    expect(summary).to_contain_text("5 pictures")

    sections = page.locator("#dataset-sections")
    sections.get_by_role("tab", name="Check").click()
    page.locator("#check-resolution input").fill("64")
    page.locator("#check-start").click()
    expect(page.locator("#check-kind")).to_contain_text("Duplicates (1)")
    page.locator("#check-fix").click()
    expect(summary).to_contain_text("4 pictures")

    sections.get_by_role("tab", name="Captions").click()
    page.locator("#captions-edit-open > button").first.click()
    page.locator("#captions-what textarea, #captions-what input").first.fill("green leaves")
    page.locator("#captions-new textarea, #captions-new input").first.fill("foliage")
    page.locator("#captions-preview").click()
    expect(page.locator("#captions-plan")).to_contain_text("4 of 4 captions would change")
    page.locator("#captions-apply").click()
    chip = page.locator('#captions-tags .tag-chip[data-tag="foliage"]')
    expect(chip).to_contain_text("4")
    page.locator("#dataset-undo").click()
    expect(chip).to_have_count(0)
    page.locator("#dataset-redo").click()
    expect(chip).to_contain_text("4")

    page.locator("#dataset-train").click()
    expect(page.locator("#train-plan")).to_contain_text("4 pictures")
    fill_number(page, "train-training-steps", "2")
    page.locator("#train-start").click()
    expect(page.locator("#run-result")).to_contain_text("LoRA file", timeout=120_000)
    run = next(run for run in list_runs(DataFolder(app.data)) if run.info().kind == "train")
    recorded = json.loads((run.folder / "datasets.json").read_text(encoding="utf-8"))["sets"][0]["pictures"]
    wanted = {f"leaf {index}.png": f"zsy, foliage, {index}" for index in range(4)}
    assert {name: picture["caption"] for name, picture in recorded.items()} == wanted
