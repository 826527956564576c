"""All tests, as `python launch.py test` runs them: those in the browser one after the other, and beside them all others.

The pages have one core for themselves, as they would for a user whose training runs; what computes has the other cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

_OTHERS = ["tests/e2e", "tests/unit", "tests/docs", "tests/parity"]
"""The longest first, so that no core waits for another at the end."""
_BROWSER = ["tests/browser"]


def main() -> int:
    """Run both parts; returns the first exit code that is not 0."""
    workers = max(1, min(8, (os.cpu_count() or 1) - 1))
    # A file goes to one process, for what its tests share is made once; a thread each, or they would wait for each other.
    spread = ["-n", str(workers), "--dist", "loadfile", "--no-loadscope-reorder"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        browser = subprocess.Popen(_pytest(*_BROWSER), stdout=told, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run(_pytest(*spread, *_OTHERS), env={**os.environ, "OMP_NUM_THREADS": "1"})
            codes = [others.returncode, browser.wait()]
        finally:
            browser.kill()
        told.seek(0)
        print(told.read(), flush=True)
    return next((code for code in codes if code), 0)


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main())
