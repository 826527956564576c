"""Settings of older schema versions brought to the current one: pure functions dict -> dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.config.run import SCHEMA_VERSION
from trainer.errors import ConfigError

STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version N to N + 1. Empty while there is only version 1."""


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """`data` in the current schema version. Raises ConfigError for a version that is newer than this program."""
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise ConfigError(
            f"These settings have schema version {version!r}; this Inkwash knows up to {SCHEMA_VERSION}.",
            where="schema_version",
            fix="Update Inkwash, or remove the line.",
        )
    while version < SCHEMA_VERSION:
        data, version = STEPS[version](data), version + 1
    return {**data, "schema_version": SCHEMA_VERSION} if "schema_version" in data else data
