"""The real app on a scratch data folder, and a real Chromium that fails a test on what a user would not see."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "assets" / "models" / "inkwash-tiny"
_START_SECONDS = 90
expect.set_options(timeout=60_000)  # a busy machine answers late; a quiet one at once
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Gradio's own, on every page and without effect.
_KNOWN_NOISE = ("svelte-i18n", "Vega-Lite", "Canvas2D")


class App:
    """The app's process and its address."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.arguments = arguments
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait for its address."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start it."""
        (self.data / "ui.json").unlink(missing_ok=True)
        self.log = open(self.data / "app-output.txt", "ab")  # noqa: SIM115 - as long as the process
        # Where nothing listens: no test may reach a model server.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "app.main",
                "--data-dir",
                str(self.data),
                "--port",
                "0",
                "--no-browser",
                *self.arguments,
            ],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def wait(self) -> None:
        """Wait for its address."""
        assert self.process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the app ended:\n{self.output()}"
            if (self.data / "ui.json").exists():
                self.url = json.loads((self.data / "ui.json").read_text())["url"]
                return
            time.sleep(0.1)
        raise AssertionError(f"the app did not start in {_START_SECONDS} s:\n{self.output()}")

    def output(self) -> str:
        """What it printed."""
        return (self.data / "app-output.txt").read_text(errors="replace")

    def end(self, *, by_force: bool = False) -> None:
        """End the app's own process; jobs are processes of their own."""
        assert self.process is not None
        if by_force:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


@pytest.fixture(scope="session")
def next_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], App]]:
    """Gives an app that answers. The one after it starts while the first is tested: that saves its imports' time in each file."""
    spare: list[App] = []

    def launch() -> None:
        data = tmp_path_factory.mktemp("browser") / "data"
        data.mkdir()
        if not (EMBEDDED / "model_index.json").exists():
            code = "import sys; from pathlib import Path; from tests.tiny_model import make_tiny_model; make_tiny_model(Path(sys.argv[1]))"
            subprocess.run([sys.executable, "-c", code, str(data / "models" / "inkwash-tiny")], cwd=ROOT, check=True)
        spare.append(App(data))
        spare[0].launch()

    def take() -> App:
        if not spare:
            launch()
        taken = spare.pop()
        taken.wait()
        launch()
        return taken

    yield take
    for app in spare:
        app.end(by_force=True)


@pytest.fixture(scope="module")
def app(next_app: Callable[[], App]) -> Iterator[App]:
    """The app, with the embedded base model, or a random one of that name where the checkout has none.

    Each file of tests has its own: the app remembers the form, the stack and the runs of whoever came before.
    """
    running = next_app()
    yield running
    running.end()
    _end_jobs(running.data)


def _end_jobs(data: Path) -> None:
    from trainer.jobs import kill_run
    from trainer.paths import DataFolder
    from trainer.runs import list_runs

    for run in list_runs(DataFolder(data)):
        kill_run(run)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium. Without one these tests fail: a skipped UI is an untested UI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    assert executable, "Chromium is missing: install the system's package `chromium`, or set CHROMIUM to its path."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        yield browser
        browser.close()


class Watch:
    """Collects what must not happen on a page."""

    def __init__(self, page: Page) -> None:
        self.faults: list[str] = []
        self.ignored: tuple[str, ...] = ()
        self.told: list[str] = []
        page.on("console", self._console)
        page.on("framenavigated", lambda frame: self._tell(f"went to {frame.url}"))
        page.on("requestfailed", lambda request: self._tell(f"failed: {request.url} {request.failure}"))
        page.on("response", self._response)
        page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        page.on("request", lambda request: self._request(request.url))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _tell(self, text: str) -> None:
        self.told.append(f"{time.strftime('%H:%M:%S')} {text}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self._tell(f"{response.status}: {response.url}")

    def _console(self, message: ConsoleMessage) -> None:
        self._tell(f"console {message.type}: {message.text}"[:500])
        if message.type == "error" and not any(noise in message.text for noise in (*_KNOWN_NOISE, *self.ignored)):
            self.faults.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _request(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.faults.append(f"request to {url}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tell beside a failed test what the page looked like and what it went through."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if call.excinfo is None or page is None:
        return report
    report.sections.append(("the page went through", "\n".join(page.watch.told[-40:])))
    try:
        report.sections.append(("the page shows", page.inner_text("body", timeout=5_000)[:4000]))
        if folder := os.environ.get("INKWASH_TEST_PICTURES"):
            page.screenshot(path=Path(folder) / f"{item.name}.png", timeout=10_000)
    except PlaywrightError as error:
        report.sections.append(("the page shows", f"nothing: {error}"))
    return report


@pytest.fixture
def watch(page: Page) -> Watch:
    """What happened on `page` that must not."""
    return page.watch  # type: ignore[attr-defined]


@pytest.fixture
def page(browser: Browser, app: App) -> Iterator[Page]:
    """A page of the app; the test fails on console errors, dialogs and requests to other machines."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(90_000)
    watch = Watch(page)
    page.watch = watch  # type: ignore[attr-defined]
    open_app(page, app)
    yield page
    context.close()
    assert watch.faults == []


def open_app(page: Page, app: App) -> None:
    """Load the page and wait until its handlers answer."""
    page.goto(app.url)
    page.wait_for_selector("#inkwash-header", timeout=40_000)
    # Gradio draws a tab when it is first opened.
    open_tab(page, "Train")
    expect(page.locator("#train-plan")).to_contain_text("pictures", timeout=40_000)


def open_tab(page: Page, title: str) -> None:
    """Click a tab."""
    page.get_by_role("tab", name=title, exact=True).click()


def fill_number(page: Page, element: str, value: str) -> None:
    """Type into a number field."""
    page.locator(f"#{element} input").first.fill(value)


EVIL_NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def picture_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures with captions; one has a file name that would be a script if it were shown unescaped."""
    path = tmp_path_factory.mktemp("zip") / "stripes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(6):
            stem = f"picture {EVIL_NAME.replace('/', '')}" if index == 0 else f"picture {index}"
            archive.writestr(f"{stem}.png", _striped(index))
            archive.writestr(f"{stem}.txt", f"stripes number {index} <b onclick=alert(2)>bold</b>")
    return path


def _striped(index: int) -> bytes:
    image = Image.new("RGB", (80, 80), (240, 236, 220))
    draw = ImageDraw.Draw(image)
    for offset in range(0, 80, 8 + index):
        draw.line((offset, 0, 80 - offset, 80), fill=(20 + 30 * index, 40, 90), width=3)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
