"""Finds the code that a configuration class or a job kind names."""

from __future__ import annotations

import importlib
from typing import Any


def load_object(reference: str) -> Any:
    """The object at `module:name`. Raises ValueError where the reference is not of that form."""
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise ValueError(f"not of the form module:name: {reference!r}")
    return getattr(importlib.import_module(module), name)
