"""All tests, as `python launch.py test` runs them: one process has those in the browser, the others all else; then all share what is left."""

from __future__ import annotations

import os
import subprocess
import sys

_FOLDERS = ["tests/browser", "tests/e2e", "tests/unit", "tests/docs", "tests/parity"]
"""The longest first, so that no core waits for another at the end."""


def main() -> int:
    """Run them; returns pytest's exit code."""
    workers = max(2, min(8, os.cpu_count() or 1))
    spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    # A thread each, or they would wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "pytest", *spread, *_FOLDERS], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
