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
from trainer.dataset.store import DatasetStore
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


def make_folder(folder: Path, *pictures: str) -> Path:
    """Pictures in folders, each with a caption that says where it is."""
    for index, name in enumerate(pictures):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        leaves(index + len(name), 64).save(path)
        path.with_suffix(".txt").write_text(f"leaf of {path.parent.name}", encoding="utf-8")
    return folder


def drop(page: Page, selector: str, *paths: Path) -> None:
    """Drop files and folders as a user does: by the browser's own dragging, which no script of a page can do."""
    area = page.locator(selector)
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **place})


def bring_folders(page: Page, app: App, folder: Path) -> None:
    """A folder as kohya's scripts want it is chosen, and another with folders in it is dropped onto what came of it."""
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Kohya")
    kohya = make_folder(folder / "train", "10_zib robot/é 1.png", "5_cat/é 1.png")
    page.locator("#dataset-new input[webkitdirectory]").set_input_files(kohya)
    expect(page.locator("#dataset-drop")).to_contain_text("train/5_cat/")
    page.locator("#dataset-create").click()
    expect(page.locator("#dataset-summary")).to_contain_text("1 picture")
    page.locator("#dataset-add-open > button").first.click()
    expect(page.locator("#dataset-add")).to_be_visible()
    drop(page, "#dataset-add", make_folder(folder / "sea", "near/a.png", "far/deep/a.png"), kohya / "5_cat" / "é 1.png")
    expect(page.locator("#dataset-summary")).to_contain_text("4 pictures")
    store = DatasetStore(DataFolder(app.data))
    robot, cat = (info for info in store.list() if info.title.startswith("Kohya"))
    if cat.repeats == 10:
        robot, cat = cat, robot
    assert (robot.title, robot.repeats, cat.title, cat.repeats) == ("Kohya zib robot", 10, "Kohya cat", 5)
    captions = sorted(picture.caption or "" for info in (robot, cat) for picture in store.scan(info.name).pictures)
    assert captions == ["", *(f"leaf of {name}" for name in ("10_zib robot", "5_cat", "deep", "near"))]


def test_from_a_zip_to_a_training(page: Page, app: App, tmp_path: Path) -> None:
    summary = page.locator("#dataset-summary")
    open_tab(page, "Dataset")
    page.locator("#dataset-new > button").first.click()
    bring_folders(page, app, tmp_path)
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
