"""All tests, as `python launch.py test` runs them: what needs no browser on all cores, then the browser's one after the other.

A page that has the machine for itself answers as it would for a user; beside tests that compute it would be late now and then.
"""

from __future__ import annotations

import os
import subprocess
import sys

_PARALLEL = ["tests/unit", "tests/docs", "tests/parity", "tests/e2e"]
_ALONE = ["tests/browser"]


def main() -> int:
    """Run both parts; returns the first exit code that is not 0."""
    workers = max(1, min(8, os.cpu_count() or 1))
    # A file goes to one process, for what its tests share is made once; a thread each, or they would wait for each other.
    parallel = ["-n", str(workers), "--dist", "loadfile", *_PARALLEL]
    codes = [
        subprocess.run([sys.executable, "-m", "pytest", *arguments], env={**os.environ, **environment}).returncode
        for arguments, environment in ((parallel, {"OMP_NUM_THREADS": "1"}), (_ALONE, {}))
    ]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
