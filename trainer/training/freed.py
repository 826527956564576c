"""Memory that was needed for a while, given back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back_freed() -> None:
    """Return what was freed to the system, where it can be: on Linux with glibc.

    Jobs keep freed memory, as that makes their steps faster (`trainer.jobs.worker_environment`). What loading, packing and
    caching took is never needed again, though, and beside a packed base model it was more than all the rest.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
