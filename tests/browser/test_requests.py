"""What can be asked of a run by clicks: save, sample, stop, resume, end by force, cancel, retry."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import App, open_tab
from tests.browser.test_loop import newest_run, set_smallest, start
from trainer.errors import ModelFileError
from trainer.events import EventWriter, Failed
from trainer.paths import DataFolder
from trainer.runs import Run, RunState, create_run

_LONG = 120_000


def wait_for_state(run: Run, *wanted: RunState, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while run.state() not in wanted:
        assert time.monotonic() < deadline, f"{run.state()} instead of {wanted}:\n{run.log_tail()}"
        time.sleep(0.2)


def choose_job(page: Page, row: int = 0) -> None:
    """Open a job of the Jobs tab by its place, the newest first."""
    open_tab(page, "Jobs")
    page.locator("#jobs-table .virtual-row").nth(row).get_by_role("gridcell").nth(1).click()


@pytest.mark.skipif(os.name == "nt", reason="a process is made deaf by POSIX means")
def test_save_sample_cancel_stop_resume_and_force(page: Page, app: App) -> None:
    open_tab(page, "Train")
    set_smallest(page, steps=4000)
    run = start(page, app)
    expect(page.locator("#run-status")).to_contain_text(re.compile(r"[1-9]\d* / 4000"), timeout=_LONG)

    page.locator("#run-save").click()
    expect(page.get_by_text("A checkpoint is saved after this step.")).to_be_visible()
    _wait_for(lambda: any(run.checkpoints.glob("*/manifest.json")), "a checkpoint")
    before = page.locator("#run-samples tbody tr").count()
    page.locator("#run-sample").click()
    expect(page.locator("#run-samples tbody tr")).to_have_count(before + 1, timeout=_LONG)
    expect(page.locator("#run-samples tbody th").first).to_contain_text(re.compile(r"Step [1-9]"))
    assert run.state() is RunState.RUNNING

    waiting = start(page, app)
    expect(page.locator("#run-status .badge.queued")).to_be_visible()
    choose_job(page)
    expect(page.locator("#job-detail")).to_contain_text("Waiting for the job before it")
    page.locator("#job-cancel").click()
    expect(page.locator("#job-detail .badge.stopped")).to_be_visible()
    assert waiting.state() is RunState.STOPPED
    assert run.state() is RunState.RUNNING

    choose_job(page, 1)
    expect(page.locator("#job-detail .badge.running")).to_be_visible()
    page.locator("#job-open").click()
    expect(page.locator("#run-status .badge.running")).to_be_visible()
    page.locator("#run-stop").click()
    expect(page.locator("#run-status .badge.stopped")).to_be_visible(timeout=_LONG)
    stopped_at = run.final_event().step  # type: ignore[union-attr]
    page.locator("#run-resume").click()
    expect(page.locator("#run-status .badge.running")).to_be_visible(timeout=_LONG)
    _wait_for(lambda: max(getattr(event, "step", 0) for event in run.events()) > stopped_at, "a step after the stop")

    # A process that does not hear: after a while it can be ended by force, and what is saved stays.
    pid = run.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    page.locator("#run-stop").click()
    expect(page.locator("#run-kill")).to_be_hidden()
    long_ago = time.time() - 60
    _wait_for(lambda: (run.folder / "requests" / "stop").exists(), "the request")
    os.utime(run.folder / "requests" / "stop", (long_ago, long_ago))
    # The page looks again when something has happened; a process that is stopped makes nothing happen.
    expect(page.locator("#run-kill")).to_be_visible()
    page.locator("#run-kill").click()
    expect(page.locator("#run-status .badge.interrupted")).to_be_visible()
    expect(page.locator("#run-status")).to_contain_text("Resume goes on from the last checkpoint")
    expect(page.locator("#run-resume")).to_be_visible()
    assert any(run.checkpoints.glob("*/manifest.json"))


def test_a_failed_job_says_why_and_is_retried_as_a_new_one(page: Page, app: App) -> None:
    settings = {"prompt": "a red house", "width": 64, "height": 64, "num_inference_steps": 1, "seed": 5}
    failed = create_run(DataFolder(app.data), "generate", "was unlucky", settings)
    writer = EventWriter(failed.events_path)
    writer(Failed(error=ModelFileError("The disk was not plugged in.", fix="Plug it in.").to_dict()))
    writer.close()
    choose_job(page)
    expect(page.locator("#job-detail .badge.failed")).to_be_visible()
    expect(page.locator("#job-detail")).to_contain_text("The disk was not plugged in.")
    expect(page.locator("#job-detail")).to_contain_text("Plug it in.")
    page.locator("#job-retry").click()
    expect(page.locator("#job-detail .badge.finished")).to_be_visible(timeout=_LONG)
    new = newest_run(app, "generate")
    assert new.id != failed.id
    assert new.config() == failed.config()
    assert failed.state() is RunState.FAILED
    assert Path(new.final_event().result["pictures"][0]).is_file()  # type: ignore[union-attr]


def _wait_for(condition: object, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.2)
