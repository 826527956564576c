"""Command-line flags made from the schema: one a field, named by its dotted path."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from trainer.config.fields import FieldSpec, describe
from trainer.config.loading import nest
from trainer.config.run import RunConfig

_DESTINATION = "setting:"


def add_flags(parser: argparse.ArgumentParser, model: type[BaseModel] = RunConfig, skip: Iterable[str] = ()) -> None:
    """A flag for every field of `model` but those in `skip`, in groups, with range and default in the help."""
    skipped = {"schema_version", *skip}
    groups: dict[str, Any] = {}
    for spec in describe(model):
        if spec.path in skipped:
            continue
        if spec.group not in groups:
            title = spec.group if spec.group != model.__name__ else "settings"
            groups[spec.group] = parser.add_argument_group(title, spec.group_help or None)
        groups[spec.group].add_argument(
            f"--{spec.path}",
            dest=_DESTINATION + spec.path,
            metavar=_metavar(spec),
            # A list flag replaces the preset's list, and may stand several times.
            action="append" if spec.kind == "list" else "store",
            help=_help(spec),
        )


def _metavar(spec: FieldSpec) -> str:
    if spec.kind == "choice":
        return "{" + ",".join(str(choice) for choice in spec.choices) + "}"
    return {"bool": "true|false", "int": "N", "float": "X", "str": "TEXT", "list": "TEXT"}[spec.kind]


def _help(spec: FieldSpec) -> str:
    notes = [note for note in ("" if spec.kind == "choice" else spec.range_text, spec.unit) if note]
    notes.append(f"default {spec.default!r}" if spec.default not in ("", []) else "default empty")
    return f"{spec.help} ({'; '.join(notes)})".replace("%", "%%")


def flag_values(options: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line, as nested settings; pydantic converts and checks the texts."""
    given = {
        name.removeprefix(_DESTINATION): _plain(value)
        for name, value in vars(options).items()
        if name.startswith(_DESTINATION) and value is not None
    }
    return nest(given)


def _plain(value: Any) -> Any:
    return [text for text in value if text] if isinstance(value, list) else value
