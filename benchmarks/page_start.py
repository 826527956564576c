"""How long until the page answers: our app against an empty gradio page, each in a process of its own, in turns.

    python benchmarks/page_start.py [--rounds 5]

Prints the medians of the seconds from process start to the first 200 of `/`, and their ratio. Goal: at most 1.25.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOAL = 1.25
_EMPTY = """
import os, sys
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr
with gr.Blocks(analytics_enabled=False) as page:
    pass
page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), share=False, ssr_mode=False, quiet=True)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def seconds_to_answer(command: list[str], port: int) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < 180:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - started
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        raise SystemExit(f"no answer from {command}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def measure_app() -> float:
    port = free_port()
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "app.main", "--data-dir", data, "--port", str(port), "--no-browser"]
        return seconds_to_answer(command, port)


def measure_empty() -> float:
    port = free_port()
    return seconds_to_answer([sys.executable, "-c", _EMPTY, str(port)], port)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    measure_empty()  # fills the disk cache for both
    pairs = [(measure_app(), measure_empty()) for _ in range(rounds)]
    app, empty = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = app / empty
    print(f"app {app:.2f} s, empty page {empty:.2f} s, ratio {ratio:.2f} (goal at most {GOAL})")
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
