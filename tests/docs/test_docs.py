"""The docs say what the code does, and their commands work."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.cli.main import COMMANDS, build_parser
from trainer.lora_files.header import read_header
from trainer.paths import PROJECT

EMBEDDED_UNET = PROJECT / "assets" / "models" / "inkwash-tiny" / "unet" / "diffusion_pytorch_model.safetensors"
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def test_reference_pages_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", PROJECT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.stale_pages() == []


def commands_in(text: str) -> list[str]:
    blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL))
    return [line.strip() for line in blocks.splitlines() if re.match(r"\s*(inkwash|python launch\.py) \w", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_are_understood(page: Path) -> None:
    for line in commands_in(page.read_text(encoding="utf-8")):
        words = shlex.split(re.sub(r"\s{3,}\(.*|\s+#.*", "", line).replace("…", ""))
        words = words[1:] if words[0] == "inkwash" else words[2:]
        if not words or words[0] not in COMMANDS:
            assert words[0] in ("test", "COMMAND", "--help", "--reinstall", "--torch"), line
            continue
        build_parser(words[0]).parse_args([word for word in words if word not in ("[...]",)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_error_and_event_has_its_heading() -> None:
    from trainer import errors, events

    errors_page = (PROJECT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    events_page = (PROJECT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.InkwashError):
            assert f"`{cls.code}` {cls.__name__}" in errors_page
    for cls in events.Event.__subclasses__():
        assert f"`{cls.model_fields['type'].default}`" in events_page


def test_the_scripting_example_trains_a_lora(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "scripting.md").read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    # The same script with less work: what takes time is how much, not what.
    less = (
        '"training": {"steps": 2, "batch_size": 2}, "preview": {"prompts": ["a red house"], "num_inference_steps": 1}'
    )
    shorter = script.replace('"training": {"steps": 20}', f'{less}, "validation": {{"num_pictures": 1}}')
    assert shorter != script
    environment = {**os.environ, "INKWASH_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", shorter]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lora = Path(done.stdout.strip().splitlines()[-1])
    assert lora.is_relative_to(tmp_path)
    assert any(name.startswith("lora_unet_") for name in read_header(lora)[1])


def test_the_example_of_the_api_fetches_a_picture(tmp_path: Path) -> None:
    import threading

    import uvicorn
    from fastapi import FastAPI
    from PIL import Image
    from safetensors.numpy import load_file, save_file

    from app.api import build_api
    from app.api_access import load_token
    from app.security import app_options
    from app.services.context import Services
    from trainer.jobs import kill_run
    from trainer.paths import DataFolder
    from trainer.runs import list_runs

    page = (PROJECT / "docs" / "api.md").read_text(encoding="utf-8")
    script = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    shorter = script.replace('"num_inference_steps": 8', '"num_inference_steps": 1, "device": "cpu"')
    assert shorter != script
    data = DataFolder(tmp_path / "data")
    data.runs.mkdir(parents=True)
    data.loras.mkdir()
    weights = load_file(EMBEDDED_UNET)
    layer = next(key for key in weights if key.startswith("up_blocks") and key.endswith("attn1.to_q.weight"))
    name = f"lora_unet_{layer.removesuffix('.weight').replace('.', '_')}"
    rows, columns = weights[layer].shape
    lora = {f"{name}.lora_down.weight": np.ones((1, columns)), f"{name}.lora_up.weight": np.ones((rows, 1))}
    save_file({key: value.astype(np.float32) for key, value in lora.items()}, data.loras / "ink.safetensors")
    # The app's own API behind the app's own guards, without the page.
    app = FastAPI(**app_options("127.0.0.1", data.runs, api=build_api(Services(data), load_token(data))))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        environment = {**os.environ, "INKWASH_URL": f"http://127.0.0.1:{port}", "INKWASH_TOKEN": load_token(data)}
        command = [sys.executable, "-c", shorter]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "house 0.png") as image:
            assert "a red house <lora:ink:te=1:unet=0.7:lbw=OUTALL:step=" in image.info["parameters"]
        assert "started" in done.stdout.split()
        assert "finished" in done.stdout.split()
    finally:
        server.should_exit = True
        thread.join(10)
        for run in list_runs(data):
            kill_run(run)
