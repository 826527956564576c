"""`inkwash ui`: opens the app."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from trainer.paths import PROJECT, data_folder

SUMMARY = "open the app in the browser"
EXAMPLES = """  inkwash ui
  inkwash ui --port 8000 --no-browser
  inkwash ui --data-dir ~/inkwash-data
  inkwash ui --api --no-browser
    (for scripts too; docs/api.md)
  INKWASH_PASSWORD=… inkwash ui --host 0.0.0.0 --no-browser
    (for other machines in your network; their browsers ask for the password, any user name will do)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--port", type=int, default=None, help="port on this machine (default: 7860, or the next free one)"
    )
    parser.add_argument(
        "--host", default=None, help="address to listen on (default: 127.0.0.1, only this machine); needs a password"
    )
    parser.add_argument(
        "--password",
        default=None,
        help="what browsers must give; better set as $INKWASH_PASSWORD, which no list of processes shows",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    parser.add_argument(
        "--api", action="store_true", help="answer scripts under /api/v1 too, with the token that is printed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Start the UI as a process of its own: the engine never imports it."""
    command = [sys.executable, "-m", "app.main", "--data-dir", str(data_folder(arguments.data_dir).root)]
    if arguments.port is not None:
        command += ["--port", str(arguments.port)]
    if arguments.host is not None:
        command += ["--host", arguments.host]
    if arguments.no_browser:
        command += ["--no-browser"]
    if arguments.api:
        command += ["--api"]
    environment = {**os.environ, **({"INKWASH_PASSWORD": arguments.password} if arguments.password else {})}
    try:
        return subprocess.call(command, cwd=PROJECT, env=environment)
    except KeyboardInterrupt:
        # The UI got the same Ctrl-C and closes by itself; running jobs go on.
        return 0
