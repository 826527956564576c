"""`inkwash ui`: opens the app."""

from __future__ import annotations

import argparse
import subprocess
import sys

from trainer.paths import PROJECT, data_folder

SUMMARY = "open the app in the browser"
EXAMPLES = """  inkwash ui
  inkwash ui --port 8000 --no-browser
  inkwash ui --data-dir ~/inkwash-data"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--port", type=int, default=None, help="port on this machine (default: 7860, or the next free one)"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def run(arguments: argparse.Namespace) -> int:
    """Start the UI as a process of its own: the engine never imports it."""
    command = [sys.executable, "-m", "app.main", "--data-dir", str(data_folder(arguments.data_dir).root)]
    if arguments.port is not None:
        command += ["--port", str(arguments.port)]
    if arguments.no_browser:
        command += ["--no-browser"]
    try:
        return subprocess.call(command, cwd=PROJECT)
    except KeyboardInterrupt:
        # The UI got the same Ctrl-C and closes by itself; running jobs go on.
        return 0
