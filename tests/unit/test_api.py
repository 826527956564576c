"""The HTTP API: nobody without the token, no other site or host, no way out of the folders; jobs, events and pictures."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.numpy import save_file

from app.api import build_api
from app.api_access import load_token, token_path
from app.security import app_options
from app.services.context import Services
from app.services.starting import STARTS
from trainer.config.generate import GenerateConfig, StackedLora
from trainer.events import EventWriter, Finished, Picture, Stage, Started
from trainer.jobs import JOBS
from trainer.locks import FileLock
from trainer.paths import DataFolder
from trainer.recipe import Recipe, save_picture
from trainer.runs import Run, create_run
from trainer.stacks import save_stack

URL = "http://127.0.0.1:7860"


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.runs.mkdir(parents=True)
    return folder


def server(data: DataFolder, password: str = "") -> FastAPI:
    api = build_api(Services(data), load_token(data))
    app = FastAPI(**app_options("127.0.0.1", data.runs, password, api))

    @app.get("/{path:path}")
    def page(path: str) -> str:
        return f"page {path}"

    return app


@pytest.fixture
def client(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr("app.api_access._WRONG_TOKEN_SECONDS", 0.0)
    with TestClient(server(data), base_url=URL) as client:
        client.headers["authorization"] = f"Bearer {load_token(data)}"
        yield client


@pytest.fixture
def run(data: DataFolder) -> Run:
    """A generation that is over, with a picture."""
    made = create_run(data, "generate", "a red house", {"prompt": "a red house"})
    path = data.outputs / "2026-11-18" / "1-5.png"
    config = GenerateConfig.model_validate({"prompt": "a red house"})
    save_picture(Image.new("RGB", (64, 64)), path, Recipe(config, 5, 64, 64, "Inkwash tiny"))
    writer = EventWriter(made.events_path)
    for event in (
        Started(pid=1),
        Stage(name="Making pictures", done=1, total=2),
        Picture(prompt="a red house", seed=5, path=str(path)),
        Finished(result={"pictures": [str(path)]}),
    ):
        writer(event)
    writer.close()
    return made


ADDRESSES = ["", "/jobs", "/pictures", "/openapi.json", "/no/such"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_answered_without_the_token(client: TestClient, address: str) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp5"}):
        for send in (client.get, client.post, client.put, client.delete):
            assert send(f"/api/v1{address}", headers=headers).status_code == 401
    wrong = {b"authorization": b"", b"x-inkwash-token": "ä".encode()}
    assert client.get(f"/api/v1{address}", headers=wrong).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1.evil.example"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_other_sites_are_refused_even_with_the_token(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/api/v1/jobs", headers=headers).status_code == status
    assert client.post("/api/v1/jobs", headers=headers, json={"kind": "generate"}).status_code == status


def test_the_token_is_made_once_and_for_this_user_alone(data: DataFolder) -> None:
    token = load_token(data)
    assert len(token) >= 43
    assert load_token(data) == token
    if os.name != "nt":
        assert stat.S_IMODE(token_path(data).stat().st_mode) == 0o600
    token_path(data).write_text("short")
    assert load_token(data) not in ("short", token)


def test_the_other_header_goes_with_a_password(data: DataFolder) -> None:
    password = "a good password"
    client = TestClient(server(data, password), base_url=URL)
    token = {"x-inkwash-token": load_token(data)}
    assert client.get("/api/v1", headers=token).status_code == 401
    assert client.get("/api/v1", headers=token, auth=("me", password)).status_code == 200


def test_without_the_api_its_addresses_are_the_pages(data: DataFolder) -> None:
    app = FastAPI(**app_options("127.0.0.1", data.runs))
    assert TestClient(app, base_url=URL).get("/api/v1/jobs").status_code == 404


@pytest.mark.parametrize(
    "address",
    [
        "/jobs/..%2f..%2fapi-token",
        "/jobs/%2e%2e",
        "/jobs/../../api-token",
        "/jobs/.hidden/events",
        "/pictures/..%2f..%2fapi-token",
        "/pictures/%2e%2e%2f%2e%2e%2fapi-token/recipe",
        "/pictures/2026-11-18%2f1-5.png",
        "/jobs/x/pictures/0",
    ],
)
def test_paths_lead_nowhere(client: TestClient, run: Run, data: DataFolder, address: str) -> None:
    answer = client.get(f"/api/v1{address}")
    assert answer.status_code in (404, 200)
    assert load_token(data) not in answer.text
    if answer.status_code == 200:
        assert answer.json().startswith("page ")  # it left the API's addresses, for the page's


def test_a_run_that_names_other_files_as_pictures_serves_none_of_them(
    client: TestClient, data: DataFolder, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    made = create_run(data, "generate", "evil", {})
    writer = EventWriter(made.events_path)
    for index, path in enumerate((secret, made.folder / "config.json", "../../../secret.png")):
        writer(Picture(index=index, path=str(path)))
    writer(Finished(result={}))
    writer.close()
    assert len(client.get(f"/api/v1/jobs/{made.id}").json()["pictures"]) == 3
    for index in range(4):
        assert client.get(f"/api/v1/jobs/{made.id}/pictures/{index}").status_code == 404


def test_a_job_its_events_and_its_picture(client: TestClient, run: Run) -> None:
    job = client.get(f"/api/v1/jobs/{run.id}").json()
    assert (job["state"], job["kind"], job["title"], job["is_over"]) == ("finished", "generate", "a red house", True)
    assert client.get("/api/v1/jobs", params={"kind": "generate"}).json() == [job]
    assert client.get("/api/v1/jobs", params={"kind": "train"}).json() == []
    picture = client.get(job["pictures"][0])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content[:4] == b"\x89PNG"

    first = client.get(f"/api/v1/jobs/{run.id}/events").json()
    assert [event["type"] for event in first["events"]] == ["started", "stage", "picture", "finished"]
    rest = client.get(f"/api/v1/jobs/{run.id}/events", params={"after": first["next"]}).json()
    assert rest == {"events": [], "next": first["next"], "state": "finished", "is_over": True}
    assert client.get(f"/api/v1/jobs/{run.id}/events", params={"after": -1}).status_code == 422


def test_events_as_a_stream_which_ends_with_the_job(client: TestClient, run: Run) -> None:
    text = client.get(f"/api/v1/jobs/{run.id}/events/stream").text
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.strip().split("\n\n")]
    assert [block["event"] for block in blocks] == ["started", "stage", "picture", "finished", "over"]
    assert json.loads(blocks[2]["data"])["seed"] == 5
    assert json.loads(blocks[4]["data"]) == {"state": "finished"}
    for seen in range(1, 4):
        # Cut off after any event, with all of them in the file: the rest comes, and no more.
        last = {"last-event-id": blocks[seen - 1]["id"]}
        again = client.get(f"/api/v1/jobs/{run.id}/events/stream", headers=last).text
        rest = [dict(line.split(": ", 1) for line in block.split("\n")) for block in again.strip().split("\n\n")]
        assert rest == blocks[seen:]


def test_the_gallery_and_a_recipe(client: TestClient, run: Run) -> None:
    found = client.get("/api/v1/pictures", params={"search": "red seed:5"}).json()
    assert found["total"] == 1
    picture = found["pictures"][0]
    assert client.get(picture["url"]).content[:4] == b"\x89PNG"
    recipe = client.get(f"{picture['url']}/recipe").json()
    assert (recipe["source"], recipe["settings"]["seed"]) == ("Inkwash", 5)
    assert client.get("/api/v1/pictures", params={"search": "blue"}).json() == {"total": 0, "pictures": []}
    assert client.get("/api/v1/pictures", params={"search": "date:x"}).json()["error"]["code"] == "config"


def test_jobs_are_started_and_cancelled(client: TestClient, data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Queued as by every other way in; nothing starts it here.
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    settings = {"prompt": "a red house", "width": 64, "height": 64, "num_inference_steps": 1}
    started = client.post("/api/v1/jobs", json={"kind": "generate", "settings": settings})
    assert started.status_code == 200
    job = started.json()
    assert job["state"] == "queued"
    assert Run(data.runs / job["id"]).config()["prompt"] == "a red house"
    assert client.post(f"/api/v1/jobs/{job['id']}/cancel").json()["state"] == "stopped"
    again = client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "run")
    assert client.post("/api/v1/jobs/none/cancel").status_code == 404


def test_jobs_for_data_sets_are_started(client: TestClient, data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    name = client.get("/api/v1/datasets").json()[0]["name"]
    bodies: list[dict[str, Any]] = [
        {"kind": "check", "settings": {"dataset": name, "settings": {"resolution": 128}}},
        {"kind": "caption", "settings": {"dataset": name, "captioner": "builtin", "existing": "overwrite"}},
        {"kind": "fetch", "settings": {"dataset": "new", "addresses": ["http://127.0.0.1:9/a.png"], "max_mb": 3}},
        {"kind": "download", "settings": {"model_id": "some/tagger", "purpose": "tagger"}},
    ]
    for body in bodies:
        job = client.post("/api/v1/jobs", json=body).json()
        assert (job["state"], job["kind"]) == ("queued", body["kind"])
        config = Run(data.runs / job["id"]).config()
        assert {key: config[key] for key in body["settings"] if key != "settings"} == {
            key: value for key, value in body["settings"].items() if key != "settings"
        }
    assert client.post("/api/v1/jobs", json=bodies[0]).json()["error"]["code"] == "dataset"  # it is being checked


def test_a_start_picture_is_kept_with_the_run(
    client: TestClient, data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    job = client.post(
        "/api/v1/jobs", json={"kind": "generate", "settings": {"init_image": str(tmp_path / "start.png")}}
    )
    name = Run(data.runs / job.json()["id"]).config()["init_image"]
    assert (data.inputs / name).read_bytes() == (tmp_path / "start.png").read_bytes()


def test_a_grid_is_started(client: TestClient, data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    job = client.post("/api/v1/jobs", json={"kind": "grid", "settings": {"x": "steps=4,8", "seed": 3}}).json()
    assert (job["state"], job["kind"]) == ("queued", "grid")


def test_upscaling_models_are_listed_and_taken_by_name(
    client: TestClient, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    data.upscalers.mkdir()
    (data.upscalers / "4x-mine.pth").write_bytes(b"123")
    assert client.get("/api/v1/upscalers").json() == [{"name": "4x-mine", "size_bytes": 3}]
    for name, state in (("4x-mine", "queued"), ("8x-other", None)):
        body = {"kind": "generate", "settings": {"hires_scale": 2, "hires_upscaler": name}}
        answer = client.post("/api/v1/jobs", json=body).json()
        assert answer.get("state") == state
    assert answer["error"]["where"] == "hires_upscaler"


def test_stacks_are_listed_as_settings_take_them(client: TestClient, data: DataFolder) -> None:
    assert client.get("/api/v1/stacks").json() == []
    loras = [StackedLora(file="ink", unet_weight=0.5, blocks="MIDD", end=0.5), StackedLora(file="lost")]
    data.loras.mkdir(parents=True)
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": np.zeros((1, 4), np.float16),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.zeros((4, 1), np.float16),
    }
    save_file(tensors, data.loras / "ink.safetensors")
    save_stack(data, "mine", loras)
    (found,) = client.get("/api/v1/stacks").json()
    assert (found["name"], found["missing"], found["problem"]) == ("mine", ["lost"], "")
    assert found["loras"] == [loras[0].model_dump(mode="json")]
    (data.stacks / "broken.json").write_text("no stack")
    (data.stacks / "newer.json").write_text('{"inkwash_stack": 99, "loras": []}')
    broken, mine, newer = client.get("/api/v1/stacks").json()
    assert "damaged" in broken["problem"]
    assert "newer" in newer["problem"]
    assert mine == found
    assert client.get("/api/v1/stacks/broken").status_code == 422
    assert client.delete("/api/v1/stacks/broken").status_code == 200


def put_lora(data: DataFolder, name: str) -> None:
    data.loras.mkdir(parents=True, exist_ok=True)
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{layer}.lora_down.weight": np.zeros((1, 4), np.float16),
        f"{layer}.lora_up.weight": np.zeros((4, 1), np.float16),
    }
    save_file(tensors, data.loras / f"{name}.safetensors")


def test_a_stack_is_saved_shared_deleted_and_taken_in(client: TestClient, data: DataFolder) -> None:
    put_lora(data, "ink")
    put_lora(data, "line")
    body = {
        "name": "evening",
        "loras": [{"file": "ink", "unet_weight": 0.5, "blocks": "MIDD"}],
        "tags": "<lora:line:2>",
    }
    saved = client.post("/api/v1/stacks", json=body).json()
    assert [(lora["file"], lora["unet_weight"], lora["blocks"]) for lora in saved["loras"]] == [
        ("ink", 0.5, "MIDD"),
        ("line", 2.0, ""),
    ]
    assert client.get("/api/v1/stacks/evening").json() == saved
    taken = client.post("/api/v1/stacks", json=body)
    assert (taken.status_code, taken.json()["error"]["where"]) == (422, "name")
    assert (
        client.post("/api/v1/stacks", json={**body, "tags": "", "overwrite": True}).json()["loras"]
        == saved["loras"][:1]
    )

    file = client.get("/api/v1/stacks/evening/file")
    assert "evening.json" in file.headers["content-disposition"]
    assert client.delete("/api/v1/stacks/evening").json()["trash"] in [path.name for path in data.trash.iterdir()]
    assert client.get("/api/v1/stacks").json() == []
    # What was shared comes back, a second time under a name that is free.
    for name in ("evening", "evening 2"):
        assert client.post("/api/v1/stacks/import", json=file.json()).json() == {
            "name": name,
            "loras": saved["loras"][:1],
            "missing": [],
            "notes": [],
        }
        assert client.get(f"/api/v1/stacks/{name}").json()["loras"] == saved["loras"][:1]


@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("", {"name": "x", "loras": [{"file": "lost"}]}),
        ("", {"name": "x", "loras": [{"file": "ink", "unet_weight": "much"}]}),
        ("", {"name": "x", "tags": "<lora:lost:1>"}),
        ("", {"name": "x", "loras": []}),
        ("", {"name": " . ", "loras": [{"file": "ink"}]}),
        ("", {"loras": [{"file": "ink"}]}),
        ("/import", {"loras": [{"file": "ink"}]}),
        ("/import", {"inkwash_stack": 99, "loras": []}),
        ("/import", {"inkwash_stack": 1, "loras": [{"file": "ink", "unet_weight": "much"}]}),
        ("/import", {"inkwash_stack": 1, "loras": [], "name": "x" * 1_000_001}),
        ("/import", []),
    ],
)
def test_what_is_no_stack_is_not_kept(client: TestClient, data: DataFolder, address: str, body: Any) -> None:
    put_lora(data, "ink")
    answer = client.post(f"/api/v1/stacks{address}", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]
    assert client.get("/api/v1/stacks").json() == []


def test_a_stack_that_is_not_there(client: TestClient) -> None:
    for name in ("none", "%2e%2e", ".."):
        assert client.delete(f"/api/v1/stacks/{name}").status_code in (404, 405)
    assert client.get("/api/v1/stacks/none").status_code == 404
    assert client.get("/api/v1/stacks/none/file").status_code == 404


def test_the_preview_of_a_picture_that_is_being_made(client: TestClient, data: DataFolder, tmp_path: Path) -> None:
    made = create_run(data, "generate", "a red house", {})
    writer = EventWriter(made.events_path)
    writer(Started(pid=1))
    writer(Picture(path="preview.jpg", is_preview=True))
    Image.new("RGB", (8, 8)).save(made.folder / "preview.jpg")
    address = f"/api/v1/jobs/{made.id}/preview"
    assert client.get(address).status_code == 404  # nobody works on it
    with FileLock(made.lock_path):
        job = client.get(f"/api/v1/jobs/{made.id}").json()
        answer = client.get(job["preview"])
        assert answer.content == (made.folder / "preview.jpg").read_bytes()
        assert answer.headers["content-type"] == "image/jpeg"
        (made.folder / "preview.jpg").unlink()
        assert client.get(f"/api/v1/jobs/{made.id}").json()["preview"] == ""
        assert client.get(address).status_code == 404
        secret = tmp_path / "secret.jpg"
        secret.write_bytes(b"secret")
        for path in (str(secret), "../../../secret.jpg", "run.json", "events.jsonl"):
            writer(Picture(path=path, is_preview=True))
            assert client.get(address).status_code == 404
    writer.close()


def test_a_picture_goes_to_the_trash_and_comes_back(client: TestClient, run: Run, data: DataFolder) -> None:
    picture = client.get("/api/v1/pictures").json()["pictures"][0]
    file = data.outputs / picture["name"]
    trash = client.delete(picture["url"]).json()["trash"]
    assert not file.exists()
    assert client.get(picture["url"]).status_code == 404
    assert client.delete(picture["url"]).status_code == 404
    for other in ("none", "..%2f..%2foutputs", "%2e%2e"):
        assert client.post(f"/api/v1/trash/{other}/restore").status_code in (404, 405)
    assert client.post(f"/api/v1/trash/{trash}/restore").json()["url"] == picture["url"]
    assert file.is_file()
    assert client.post(f"/api/v1/trash/{trash}/restore").status_code == 404


def test_a_picture_is_marked_as_a_favourite(client: TestClient, run: Run) -> None:
    url = client.get("/api/v1/pictures").json()["pictures"][0]["url"]
    for mark, total in ((client.put, 1), (client.delete, 0)):
        assert mark(f"{url}/favourite").json() == {"is_favourite": bool(total)}
        assert client.get("/api/v1/pictures", params={"search": "is:favourite"}).json()["total"] == total
    assert client.put("/api/v1/pictures/none/favourite").status_code == 404


def test_the_recipe_of_a_picture_of_another_program(client: TestClient, tmp_path: Path) -> None:
    exif = Image.Exif()
    text = "a fox\nSteps: 13, Sampler: Euler a, CFG scale: 4, Seed: 99, Size: 64x64, Denoising strength: 0.4, Hires upscale: 2"
    exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    found = client.get("/api/v1/recipe", params={"file": str(tmp_path / "a.webp")}).json()
    assert (found["source"], found["settings"]["sampler"], found["settings"]["hires_scale"]) == (
        "A1111",
        "Euler a",
        2.0,
    )
    assert found["settings"]["hires_strength"] == 0.4
    for file in (str(tmp_path), str(tmp_path / "gone.png"), "/etc/passwd"):
        assert client.get("/api/v1/recipe", params={"file": file}).status_code == 422


def test_a_job_that_cannot_go_on_says_so(client: TestClient, run: Run) -> None:
    answer = client.post(f"/api/v1/jobs/{run.id}/resume")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "run")
    assert client.post("/api/v1/jobs/none/resume").status_code == 404


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"kind": "generate", "settings": {"width": 7}}, "width"),
        ({"kind": "generate", "settings": {"promt": "x"}}, "promt"),
        ({"kind": "train", "settings": {"training": {"steps": 0}}}, "training.steps"),
        ({"kind": "compare", "settings": {}}, "lora"),
        ({"kind": "grid", "settings": {"x": "steps=no"}}, ""),
        ({"kind": "check", "settings": {"dataset": "x", "settings": {"resolution": 1}}}, "settings.resolution"),
        ({"kind": "caption", "settings": {}}, "dataset"),
        ({"kind": "fetch", "settings": {"dataset": "x", "addresses": ["ftp://x"]}}, "addresses.0"),
        ({"kind": "generate", "settings": {"init_image": "/no/such.png"}}, ""),
        ({"kind": "tool:inspect it", "settings": {}}, ""),
        ({"kind": "download", "settings": {"model_id": "no id"}}, "model_id"),
        ({"kind": "generate", "settings": {}, "folder": "/etc"}, "body.folder"),
        ({"settings": {}}, "body.kind"),
        ([], "body"),
    ],
)
def test_what_cannot_run_is_refused_at_its_field(
    client: TestClient, data: DataFolder, body: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)  # should one be taken after all
    answer = client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"]
    assert where in [finding["where"] for finding in error["findings"]] or not where
    assert list(data.runs.glob("*/run.json")) == []


def test_a_missing_lora_is_refused_before_the_queue(
    client: TestClient, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    answer = client.post("/api/v1/jobs", json={"kind": "generate", "settings": {"loras": [{"file": "lost"}]}})
    assert answer.status_code == 422
    assert "lost" in answer.json()["error"]["message"]
    assert list(data.runs.glob("*/run.json")) == []
    for kind, more in (("generate", {}), ("grid", {"x": "steps=4,8"})):  # what is switched off is not needed
        settings = {"loras": [{"file": "lost", "is_on": False}], **more}
        assert client.post("/api/v1/jobs", json={"kind": kind, "settings": settings}).json()["state"] == "queued"


def test_a_body_without_end_is_refused(client: TestClient) -> None:
    assert client.post("/api/v1/jobs", content=b"x" * 2_000_001).status_code == 413
    assert client.post("/api/v1/jobs", content=iter([b"x"])).status_code == 411


def test_lists_and_descriptions(client: TestClient) -> None:
    assert client.get("/api/v1").json()["name"] == "Inkwash"
    assert client.get("/api/v1/loras").json() == []
    assert any(model["name"] == "inkwash-tiny" for model in client.get("/api/v1/models").json())
    assert all(info["name"] for info in client.get("/api/v1/datasets").json())
    kinds = client.get("/api/v1/kinds").json()
    assert kinds == list(STARTS)
    for kind in kinds:
        assert client.get(f"/api/v1/kinds/{kind}").json()["properties"]
    assert client.get("/api/v1/kinds/none").status_code == 404
    assert "/api/v1/jobs/{job_id}" in client.get("/api/v1/openapi.json").json()["paths"]


def test_every_kind_of_job_can_be_started() -> None:
    assert {kind.partition(":")[0] for kind in STARTS} == set(JOBS)
