"""Downloading a model from a server that speaks as the hub does: progress, taking up, cancelling, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import make_tiny_model
from trainer.base_models.hub import cached_snapshot

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).resolve().parents[2]


class Hub:
    """A server with the models of a folder, `owner/name` each."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.+)?", path)
        if about:
            if about[1] == "owner/gated":
                return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
            folder = self.models / about[1]
            if not folder.is_dir():
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if (about[2] or "").startswith("/tree"):
                entries = [
                    {
                        "type": "file",
                        "path": file.relative_to(folder).as_posix(),
                        "size": file.stat().st_size,
                        "oid": _etag(file),
                    }
                    for file in files
                ]
                return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            info = {"id": about[1], "modelId": about[1], "sha": COMMIT, "siblings": siblings, "private": False}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        file = self.models / found[1] / found[2] if found else None
        if file is None or not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    models = tmp_path_factory.mktemp("hub")
    make_tiny_model(models / "owner" / "tiny")
    (models / "owner" / "tiny" / "safety_checker").mkdir()
    (models / "owner" / "tiny" / "safety_checker" / "model.safetensors").write_bytes(b"not wanted")
    (models / "owner" / "tiny" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (models / "owner" / "other").mkdir()
    (models / "owner" / "other" / "README.md").write_text("no model")
    hub = Hub(models)
    yield hub
    hub.server.shutdown()


def inkwash(tmp_path: Path, url: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the command line as users do: with the network switched off for everything that did not ask for it."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_CACHE", None)
    code = "import sys; from trainer.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--data-dir", str(tmp_path / "data"), "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def test_a_downloaded_model_is_in_the_list_and_holds_what_is_needed(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.asked.clear()
    code, result, errors = inkwash(tmp_path, hub.url, "model", "download", "owner/tiny")
    assert code == 0, errors
    folder = Path(result["path"])
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (folder / "safety_checker").exists()
    assert not any("bin" in line or "safety" in line for line in hub.asked), "pickles and what is not needed stay there"
    downloaded = [line for line in hub.asked if line.startswith("GET") and "safetensors" in line]
    events = next((tmp_path / "data" / "runs").glob("*/events.jsonl")).read_text()
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert f'"done":{total},"total":{total}' in events.replace(" ", "")

    # Once more, the server is asked what there is, and fetches nothing again; then everything works without it.
    assert inkwash(tmp_path, hub.url, "model", "download", "owner/tiny")[0] == 0
    assert [line for line in hub.asked if line.startswith("GET") and "safetensors" in line] == downloaded
    before = len(hub.asked)
    code, result, errors = inkwash(tmp_path, hub.url, "model", "list")
    assert "owner/tiny" in [model["name"] for model in result["models"]]
    code, result, errors = inkwash(tmp_path, hub.url, "model", "inspect", "owner/tiny")
    assert (code, result["family"]) == (0, "sd1"), errors
    assert len(hub.asked) == before, "nothing but a download uses the network"

    # By its id, too, although the hub has files of it that were left there and are known of.
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        assert cached_snapshot("owner/tiny") == folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["owner/gone"], 4, "There is no model 'owner/gone'"),
        (["owner/other"], 4, "no whole model in diffusers' format"),
        (["owner/gated"], 6, "accepted its licence"),
        (["owner/tiny", "--variant", "fp16"], 4, "no .safetensors weights of the variant 'fp16'"),
        (["no id at all"], 2, "model_id"),
        (["../x"], 2, "model_id"),
    ],
)
def test_what_cannot_be_downloaded_is_refused_in_words(
    tmp_path: Path, hub: Hub, arguments: list[str], code: int, words: str
) -> None:
    found, result, errors = inkwash(tmp_path, hub.url, "model", "download", *arguments)
    assert found == code, errors
    assert words in errors or words in json.dumps(result)
    assert "Traceback" not in errors


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, _, errors = inkwash(tmp_path, "http://127.0.0.1:9", "model", "download", "owner/tiny")
    assert code == 6
    assert "cannot be reached" in errors
