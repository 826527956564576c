"""A data set from a zip to a training: what the check finds is fixed, tags are changed in bulk and taken back, then it is trained on."""

from __future__ import annotations

import io
import json
import re
import time
import zipfile
from pathlib import Path

import psutil
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, Watch, fill_number, open_tab
from tests.leaves import leaves
from trainer.dataset.store import DatasetStore
from trainer.events import Stage
from trainer.paths import DataFolder
from trainer.runs import Run, list_runs


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


def cancel_an_import(page: Page, app: App, folder: Path) -> None:
    """An import tells how far it is, is found again by a page that is loaded anew, and leaves nothing when it is cancelled."""
    archive = folder / "many.zip"
    buffer = io.BytesIO()
    leaves(1, 64).save(buffer, format="PNG")
    with zipfile.ZipFile(archive, "w") as many:
        for index in range(1500):
            many.writestr(f"{index}.png", buffer.getvalue() + b"\0" * index)
    page.locator("#dataset-new > button").first.click()
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Many")
    page.locator("#dataset-drop input[type=file]").set_input_files(archive)
    expect(page.locator("#dataset-drop")).to_contain_text("many.zip")
    page.locator("#dataset-create").click()
    run = import_that_works(DataFolder(app.data))
    state = page.locator("#dataset-import-state")
    process = psutil.Process(run.pid())
    process.suspend()  # as long as one looks at it
    try:
        shown = re.compile(r"(Unpacking the zip|Copying pictures) \([\d,]+ of 1,?500\)")
        expect(state).to_contain_text(shown)
        page.reload()
        expect(state).to_contain_text(shown)
        expect(state.locator("[role=progressbar]")).to_be_visible()
        page.locator("#dataset-import-stop").click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("nothing of it is kept")
    finally:
        process.resume()
    expect(state).to_contain_text("nothing of it was kept")
    expect(page.locator("#dataset-import-stop")).to_be_hidden()
    assert not list((app.data / "datasets").iterdir())
    assert not list((app.data / "cache" / "dropped").iterdir())


def import_that_works(data: DataFolder) -> Run:
    """The import that has told of a stage."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for run in list_runs(data):
            if run.info().kind == "import" and any(isinstance(event, Stage) for event in run.events()):
                return run
        time.sleep(0.01)
    raise AssertionError("no import began")


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


def test_from_a_zip_to_a_training(page: Page, app: App, watch: Watch, tmp_path: Path) -> None:
    watch.ignored = ("AbortError",)  # the reload cuts off polls that are under way
    summary = page.locator("#dataset-summary")
    open_tab(page, "Dataset")
    cancel_an_import(page, app, tmp_path)
    page.locator("#dataset-new > button").first.click()
    bring_folders(page, app, tmp_path)
    page.locator("#dataset-new-name input, #dataset-new-name textarea").first.fill("Leaves")
    page.locator("#dataset-drop input[type=file]").set_input_files(make_zip(tmp_path / "leaves.zip"))
    expect(page.locator("#dataset-drop").get_by_role("row", name="leaves.zip")).to_be_visible()
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
    expect(page.locator("#train-plan")).to_contain_text(re.compile(r"\b4 pictures"))  # not the 24 of the one before
    fill_number(page, "train-training-steps", "2")
    page.locator("#train-start").click()
    expect(page.locator("#run-result")).to_contain_text("LoRA file", timeout=120_000)
    run = next(run for run in list_runs(DataFolder(app.data)) if run.info().kind == "train")
    recorded = json.loads((run.folder / "datasets.json").read_text(encoding="utf-8"))["sets"][0]["pictures"]
    wanted = {f"leaf {index}.png": f"zsy, foliage, {index}" for index in range(4)}
    assert {name: picture["caption"] for name, picture in recorded.items()} == wanted
