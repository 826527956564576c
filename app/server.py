"""The server of the page: one a data folder, on this machine only, on a port that is free."""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from app.api_access import API_PATH, load_token, token_path
from app.security import PASSWORD_VARIABLE, app_options, check_password, is_loopback
from app.startup import quick_start
from trainer.errors import ResourceError, RunError
from trainer.files import write_json
from trainer.locks import FileLock, is_locked
from trainer.paths import ASSETS, DataFolder, data_folder

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from app.services.context import Services

log = logging.getLogger(__name__)

DEFAULT_PORT = 7860
_PORTS_TRIED = 100
_MAX_UPLOAD = "4gb"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of `python -m app.main`."""
    parser = argparse.ArgumentParser(prog="python -m app.main", description="Open the Inkwash app.")
    parser.add_argument("--data-dir", default=None, help="where runs, data sets and LoRAs are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; only this machine by default")
    parser.add_argument(
        "--password",
        default=None,
        help=f"what the browser must give; better in ${PASSWORD_VARIABLE}, which no list of processes shows",
    )
    parser.add_argument(
        "--port", type=int, default=None, help=f"port (default: {DEFAULT_PORT} or the next free one; 0: any free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    parser.add_argument(
        "--api", action="store_true", help="answer scripts under /api/v1 too, with the token that is printed"
    )
    options = parser.parse_args(argv)
    options.password = options.password or os.environ.get(PASSWORD_VARIABLE, "")
    return options


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM. Returns the exit code.

    Raises: ConfigError: other machines reach the host, and there is no password. ResourceError: the port is in use, or
        the data folder cannot be written.
    """
    check_password(options.host, options.password)
    data = data_folder(options.data_dir)
    _prepare(data)
    lock = FileLock(data.root / "ui.lock", busy_message="The app is already running on this data folder.")
    try:
        lock.__enter__()
    except RunError:
        return _point_to_running(data, options)
    try:
        port = choose_port(options.host, options.port)
        return _serve(data, options, port)
    finally:
        (data.root / "ui.json").unlink(missing_ok=True)
        lock.__exit__(None, None, None)


def _prepare(data: DataFolder) -> None:
    """Folders and environment, before gradio is imported: it reads some of these once."""
    try:
        for folder in (data.runs, data.outputs, data.loras, data.datasets, data.models, data.logs, data.cache / "web"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"The data folder cannot be used: {error.strerror}.",
            where=str(data.root),
            fix="Choose a folder that you may write to with --data-dir.",
        ) from error
    os.environ["GRADIO_TEMP_DIR"] = str(data.cache / "web")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _log_to(data.logs / "ui.log")


def _log_to(path: Path) -> None:
    file = logging.handlers.RotatingFileHandler(path, maxBytes=5_000_000, backupCount=3, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(file)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _point_to_running(data: DataFolder, options: argparse.Namespace) -> int:
    """Another app serves this data folder: say where, and open it. It may be starting still."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and is_locked(data.root / "ui.lock"):
        try:
            url = json.loads((data.root / "ui.json").read_text(encoding="utf-8"))["url"]
        except (OSError, ValueError, KeyError):
            time.sleep(0.2)
            continue
        print(f"Inkwash already runs on this data folder: {url}", flush=True)
        if not options.no_browser:
            webbrowser.open(url)
        return 0
    raise RunError(
        "Another Inkwash holds this data folder, but does not say where it runs.",
        where=str(data.root),
        fix="Close it, or choose another folder with --data-dir.",
    )


def choose_port(host: str, wanted: int | None) -> int:
    """A free port: the one wanted, any (0), or the first free from the default on.

    Raises: ResourceError: the one wanted is in use, or none is free.
    """
    if wanted is not None:
        try:
            return _bind(host, wanted)
        except (OSError, OverflowError) as error:
            raise ResourceError(
                f"Port {wanted} cannot be used: {getattr(error, 'strerror', None) or error}.",
                where=f"{host}:{wanted}",
                fix="Close the program that uses it, or choose another with --port (0 takes any that is free).",
            ) from error
    for port in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED):
        try:
            _bind(host, port)
        except OSError:
            continue
        if port != DEFAULT_PORT:
            print(f"Port {DEFAULT_PORT} is in use; taking {port}.", flush=True)
        return port
    raise ResourceError(
        f"None of the ports {DEFAULT_PORT} to {DEFAULT_PORT + _PORTS_TRIED - 1} is free.",
        where=host,
        fix="Choose one with --port (0 takes any that is free).",
    )


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            # What gradio's own server does: a port in TIME_WAIT counts as free, one that is listened on does not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _serve(data: DataFolder, options: argparse.Namespace, port: int) -> int:
    from app.services.jobs import QueueClock

    if not is_loopback(options.host):
        print("Note: everyone who knows the password can use the app. The connection is not encrypted.", flush=True)
    clock = QueueClock(data)
    with quick_start():
        from app import stack_shown, texts, uploads
        from app.page import build_page
        from app.services.context import Services
        from app.theme import CSS_PATH, head, make_theme

        services = Services(data)
        page = build_page(services)
        api = _api(services) if options.api else None
        # Before launch: gradio waits for the first answer of the page, and a failure there must not leave a thread.
        _, local_url, _ = page.launch(
            server_name=options.host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            show_error=False,
            max_file_size=_MAX_UPLOAD,
            strict_cors=True,
            allowed_paths=[str(path) for path in served_folders(data)],
            theme=make_theme(),
            css_paths=[CSS_PATH],
            head=head() + texts.HEAD + uploads.HEAD + stack_shown.HEAD,
            app_kwargs=app_options(options.host, data.runs, options.password, api),
        )
    url = local_url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - for people to open
    write_json(data.root / "ui.json", {"url": url, "pid": os.getpid()})
    print(f"Inkwash runs at {url}\nData folder: {data.root}\nCtrl-C closes it; jobs that run go on.", flush=True)
    if options.api:
        print(f"API: {url.rstrip('/')}{API_PATH}, token: {load_token(data)} (also in {token_path(data)})", flush=True)
    if not options.no_browser:
        webbrowser.open(url)
    clock.start()
    try:
        _wait_for_end()
    finally:
        clock.stop()
        page.close(verbose=False)
    return 0


def _api(services: Services) -> ASGIApp:
    from app.api import build_api

    return build_api(services, load_token(services.data))


def served_folders(data: DataFolder) -> list[Path]:
    """Folders whose pictures the page may show by their paths. Nothing else of the disk is served."""
    return [data.outputs, data.runs, data.loras, data.cache / "thumbnails", data.cache / "web", ASSETS / "datasets"]


def _wait_for_end() -> None:
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    while not ended.wait(1.0):  # a wait without end would not let Windows deliver Ctrl-C
        pass
    print("Closing.", file=sys.stderr, flush=True)
