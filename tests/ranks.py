"""The processes of a run on several devices, forked from the test: gloo on the CPU, and nothing to import anew."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.ranks import own_place
from trainer.runs import Run


def can_fork() -> bool:
    """Whether a forked process can train: not on Windows, and not where torch has threads for graphics cards."""
    return hasattr(os, "fork") and not torch.accelerator.is_available()


def on_ranks(count: int, function: Callable[[int], int | None], log: Path, seconds: float = 120) -> list[int]:
    """Call `function` with its number in `count` processes that can reach each other. Returns their exit codes.

    Where one takes too long all are killed; what they wrote is in `log`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(index, count, port, function, log) for index in range(count)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < count:
        for child in children:
            if child not in codes:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def _fork(index: int, count: int, port: int, function: Callable[[int], int | None], log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with open(log, "a", encoding="utf-8", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = output
            logging.basicConfig(level=logging.INFO, stream=output, force=True)
            os.environ |= {
                "RANK": str(index),
                "WORLD_SIZE": str(count),
                "LOCAL_RANK": str(index),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
            torch.set_num_threads(1)
            try:
                code = function(index) or 0
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def train_on_ranks(run: Run, count: int = 2) -> list[int]:
    """Start or resume a run on `count` devices, as `accelerate launch … -m trainer.worker RUN --start` does."""
    from trainer.worker import work_as_rank

    return on_ranks(count, lambda _: work_as_rank(run, own_place(), is_asked=True), run.log_path)
