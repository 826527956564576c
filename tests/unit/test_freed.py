"""What a job freed before its first step is not counted as its own any longer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trainer.jobs import worker_environment

_PROGRAM = """
import psutil
from trainer.training.freed import give_back_freed

def used():
    return psutil.Process().memory_info().rss >> 20

before = used()
parts = [bytearray(1 << 20) for _ in range(200)]
del parts
kept = used() - before
give_back_freed()
print(kept, used() - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not os.path.exists("/proc/self/maps"), reason="of glibc")
def test_what_loading_took_is_given_back_before_the_first_step() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=worker_environment(), capture_output=True, text=True, check=True
    )
    kept, left = map(int, answer.stdout.split())
    assert kept > 150, "jobs keep what they free, otherwise there is nothing to give back"
    assert left < 20
