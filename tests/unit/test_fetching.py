"""Fetching pictures from a local server: what comes in, what is refused, taking up and cancelling."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from trainer.dataset.fetch_job import fetch, start_fetch
from trainer.dataset.fetching import FetchLimits, fetch_picture
from trainer.dataset.store import DatasetStore
from trainer.errors import Cancelled, ConfigError, DatasetError
from trainer.events import EventWriter, Warned
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.runs import Run, create_run

LIMITS = FetchLimits(200_000, 5.0, allow_private=True)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    zoo.noise(seed=seed).save(buffer, format="PNG")
    return buffer.getvalue()


class Site:
    """A server whose answers are (status, headers, body); a body of None drips without end."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes | None]] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                status, headers, body = site.pages.get(self.path, (404, {}, b"no"))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    if body is not None:
                        self.wfile.write(body)
                    while body is None:
                        self.wfile.write(b"\x89PNG")
                        self.wfile.flush()
                        time.sleep(0.05)
                except OSError:
                    return

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_picture_gets_the_name_of_its_address_and_the_ending_of_its_content(site: Site, tmp_path: Path) -> None:
    site.pages["/a/my%20hill.jpg?size=1"] = (200, {"Content-Type": "text/plain"}, png(1))
    site.pages["/go"] = (302, {"Location": "/a/my%20hill.jpg?size=1"}, b"")
    path = fetch_picture(f"{site.url}/go", tmp_path, LIMITS)
    assert path.name == "my hill.png"
    assert path.read_bytes() == png(1)


@pytest.mark.parametrize(("in_container", "start"), [(True, b"\0\0\0\x0cJXL "), (False, b"\xff\x0a")])
def test_jpeg_xl_comes_in_with_and_without_a_container(
    site: Site, tmp_path: Path, in_container: bool, start: bytes
) -> None:
    pytest.importorskip("pillow_jxl")
    buffer = io.BytesIO()
    zoo.noise(seed=1).save(buffer, format="JXL", use_container=in_container)
    assert buffer.getvalue().startswith(start)
    site.pages["/hill"] = (200, {}, buffer.getvalue())
    path = fetch_picture(f"{site.url}/hill", tmp_path, LIMITS)
    assert (path.name, path.read_bytes()) == ("hill.jxl", buffer.getvalue())


def test_a_bare_jpeg_xl_is_known_without_its_plug_in(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.dataset.pictures.jxl_is_readable", lambda: False)
    site.pages["/hill"] = (200, {}, bytes.fromhex("ff0acb0600138802003001b5"))
    with pytest.raises(DatasetError, match="JPEG XL cannot be read") as caught:
        fetch_picture(f"{site.url}/hill", tmp_path, LIMITS)
    assert "--extra jxl" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ((200, {}, b"<html>no</html>"), "not a picture"),
        ((200, {}, png(1)[:3000]), "incomplete or damaged"),
        ((200, {"Content-Length": "999999"}, png(1)), "broke off"),
        ((200, {}, b"\x89PNG\r\n\x1a\n" + bytes(300_000)), "larger than 0.2 MB"),
        ((404, {}, b""), "answers 404"),
        ((302, {"Location": "/x"}, b""), "only leads to other"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "no http or https"),
    ],
)
def test_what_is_no_whole_picture_is_refused_and_leaves_nothing(
    site: Site, tmp_path: Path, page: tuple[int, dict[str, str], bytes], message: str
) -> None:
    site.pages["/x"] = page
    with pytest.raises(DatasetError, match=message):
        fetch_picture(f"{site.url}/x", tmp_path, LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_end_is_left_in_time(site: Site, tmp_path: Path) -> None:
    site.pages["/x"] = (200, {}, None)
    began = time.monotonic()
    with pytest.raises(DatasetError, match="longer than"):
        fetch_picture(f"{site.url}/x", tmp_path, FetchLimits(10_000_000, 0.5, allow_private=True))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
def test_the_own_network_is_not_asked(site: Site, tmp_path: Path, host: str) -> None:
    port = site.url.rpartition(":")[2]
    with pytest.raises(DatasetError, match=r"own machine or network|cannot be reached"):
        fetch_picture(f"http://{host}:{port}/x", tmp_path, FetchLimits(1000, 5.0))
    assert site.asked == []


@pytest.mark.parametrize(
    "address", ["ftp://a/b", "file:///etc/passwd", "http://", "http://me:secret@a/b", "http://a/ b"]
)
def test_addresses_are_judged_before_anything_starts(tmp_path: Path, address: str) -> None:
    data = DataFolder(tmp_path)
    with pytest.raises(ConfigError):
        start_fetch(data, "set", ["http://example.org/a.png", address])
    assert not data.runs.exists()


def test_the_name_of_a_new_set_is_judged_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    site.pages["/1.png"] = (200, {}, png(1))
    with pytest.raises(DatasetError, match="needs a name"):
        start_fetch(data, "???", [f"{site.url}/1.png"], allow_private=True)
    assert (site.asked, data.runs.exists()) == ([], False)


def job(data: DataFolder, site: Site, *pages: str) -> Run:
    config = {"dataset": "set", "addresses": [site.url + page for page in pages], "allow_private": True}
    return create_run(data, "fetch", "t", config)


def work(run: Run) -> dict[str, Any]:
    writer = EventWriter(run.events_path)
    try:
        return fetch(JobContext(run, writer))
    finally:
        writer.close()


def test_the_job_makes_a_set_names_what_failed_and_is_taken_up_again(site: Site, tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    site.pages["/1.png"], site.pages["/2.png"] = (200, {}, png(1)), (200, {}, png(2))
    stopped = job(data, site, "/1.png", "/2.png")
    real, asked = stopped.has_request, site.asked
    stopped.has_request = lambda name: bool(asked) or real(name)  # type: ignore[method-assign] - a stop in the middle
    with pytest.raises(Cancelled):
        work(stopped)
    run = job(data, site, "/1.png", "/gone.png", "/2.png", "/1.png")
    assert work(run) == {"dataset": "set", "is_new": True, "added": 2, "failed": 1}
    warned = [event.message for event in run.events() if isinstance(event, Warned)]
    assert len(warned) == 1
    assert "/gone.png" in warned[0]
    store = DatasetStore(data)
    assert [facts.name for facts in store.scan("set").pictures] == ["1.png", "2.png"]
    site.pages["/3.png"] = (200, {}, png(3))
    assert work(job(data, site, "/3.png")) == {"dataset": "set", "is_new": False, "added": 1, "failed": 0}
    assert store.get("set").num_pictures == 3
    assert not list((data.cache / "fetched").rglob("*.png"))
    with pytest.raises(DatasetError, match="None of the pictures"):
        work(job(data, site, "/gone.png"))
