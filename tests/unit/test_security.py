"""Only the page itself and programs of this machine are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.main import main
from app.security import allowed_hosts, app_options, is_loopback


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = FastAPI(**app_options("127.0.0.1", tmp_path / "runs"))

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def answer(path: str) -> str:
        return path

    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860"])
def test_own_hosts_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.7:7860"])
def test_foreign_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/run/predict", "/"])
def test_requests_of_other_sites_are_refused(client: TestClient, headers: dict[str, str], path: str) -> None:
    assert client.post(path, headers=headers).status_code == 403


def test_a_picture_cannot_be_embedded_elsewhere(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/gradio_api/file=/x.png", headers=headers).status_code == 403


def test_a_link_to_the_page_works(client: TestClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=headers).status_code == 200


def test_the_page_itself_and_programs_are_answered(client: TestClient) -> None:
    own = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert client.post("/gradio_api/upload", headers=own).status_code == 200
    assert client.post("/gradio_api/upload").status_code == 200


def test_settings_and_logs_of_runs_are_not_served(client: TestClient, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    assert client.get(f"/gradio_api/file={run}/samples/1.png").status_code == 200
    assert client.get(f"/gradio_api/file={run}/config.json").status_code == 403
    assert client.get(f"/gradio_api/file={run}/../one/log.txt").status_code == 403
    assert client.get(f"/gradio_api/file={run}/samples/%2e%2e/log.txt").status_code == 403


def test_documentation_pages_are_off(tmp_path: Path) -> None:
    app = FastAPI(**app_options("127.0.0.1", tmp_path))
    assert [route.path for route in app.routes] == []  # type: ignore[attr-defined]


# --- for other machines: the password ------------------------------------------------------------------------------

PASSWORD = "a good: pässword"


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("app.security._WRONG_PASSWORD_SECONDS", 0.0)
    app = FastAPI(**app_options("10.1.2.3", tmp_path, PASSWORD))

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    def answer(path: str) -> str:
        return path

    return TestClient(app, base_url="http://10.1.2.3:7860")


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/upload", "/gradio_api/queue/join", "/assets/x.js"])
def test_nothing_is_answered_without_the_password(guarded: TestClient, path: str) -> None:
    for send in (guarded.get, guarded.post):
        refused = send(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert send(path, auth=("me", "another one")).status_code == 401
        assert send(path, headers={"authorization": "Basic ?"}).status_code == 401
        assert send(path, auth=(b"anybody", PASSWORD.encode())).status_code == 200


def test_this_machine_needs_no_password_but_may_have_one(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/").status_code == 200
    own = TestClient(FastAPI(**app_options("127.0.0.1", tmp_path, PASSWORD)), base_url="http://127.0.0.1:7860")
    assert own.get("/").status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "my-computer"])
@pytest.mark.parametrize("password", ["", "short"])
def test_other_machines_are_not_served_without_a_password(
    host: str, password: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INKWASH_PASSWORD", raising=False)
    arguments = ["--host", host, "--data-dir", str(tmp_path / "new"), "--no-browser"]
    assert main([*arguments, *(["--password", password] if password else [])]) == 2
    said = capsys.readouterr().err
    assert "INKWASH_PASSWORD" in said
    assert host in said
    assert not (tmp_path / "new").exists()


def test_hosts_of_a_server_for_the_network() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("127.0.0.1.example")
    assert not is_loopback("0.0.0.0")
    assert "10.1.2.3" in allowed_hosts("10.1.2.3")
    assert "*" not in allowed_hosts("0.0.0.0")
