"""What makes the page answer sooner, without a change of what it does; measured by `benchmarks/page_start.py`."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quick_start() -> Iterator[None]:
    """For all that is done until the page answers, gradio's import included.

    What is made in that time stays for good, and looking for garbage in it took a sixth of the time.
    """
    gc.disable()
    try:
        with remembered_signatures():
            yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def remembered_signatures() -> Iterator[None]:
    """Answer questions for the signature of a function from memory.

    While a page is built and served gradio asks thousands of times for those of some sixty constructors, to describe its
    components: a quarter of that time. Signatures of one function are always the same.
    """
    plain = inspect.signature, inspect.getfullargspec
    inspect.signature, inspect.getfullargspec = _remembered(plain[0]), _remembered(plain[1])
    try:
        yield
    finally:
        inspect.signature, inspect.getfullargspec = plain


def _remembered(function: Callable[..., Any]) -> Any:
    from_memory = functools.lru_cache(maxsize=None)(function)

    @functools.wraps(function)
    def answer(*args: Any, **options: Any) -> Any:
        try:
            hash((args, tuple(options.values())))
        except TypeError:  # a callable that cannot be a key
            return function(*args, **options)
        return from_memory(*args, **options)

    return answer
