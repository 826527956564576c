"""The base class of all settings and the hints that a field can carry for forms and docs."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Level(Enum):
    """Who needs a field: it stands in the form at once, or under Advanced."""

    BASIC = "basic"
    ADVANCED = "advanced"


@dataclass(frozen=True)
class Hint:
    """What a form needs beside type and range. Which widget is the form's business."""

    level: Level = Level.ADVANCED
    unit: str = ""
    label: str = ""
    names: Literal["", "lora", "model"] = ""
    """What a text, or each entry of a list, is the name or path of."""


BASIC = Hint(Level.BASIC)


class Settings(BaseModel):
    """A group of settings: unknown keys are refused, values do not change, docstrings below fields are the help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        str_strip_whitespace=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        # What pydantic's `use_attribute_docstrings` does, which tokenises each class anew: a third of a second in all,
        # before the page can answer.
        super().__pydantic_init_subclass__(**options)
        texts = _docstrings(cls.__module__).get(cls.__qualname__, {})
        for name, field in cls.model_fields.items():
            if field.description is None and name in texts:
                field.description = texts[name]


def foreign_settings(
    config: Settings, at: str, groups: Mapping[str, str], chosen: str, title: str
) -> list[tuple[str, str]]:
    """Settings of kinds that are not chosen, which would do nothing, as (field path, message with the remedy).

    Args:
        config: has a group of settings for some of its kinds.
        at: its own path.
        groups: for each kind its group; empty if it has none.
        chosen: the kind that is chosen, and its `title` for people.
    """
    faults: list[tuple[str, str]] = []
    for group in dict.fromkeys(group for group in groups.values() if group not in ("", groups[chosen])):
        users = " or ".join(word for word, its in groups.items() if its == group)
        settings: Settings = getattr(config, group)
        faults += [
            (f"{at}.{group}.{name}", f"{title} does not have it: choose {users}, or set it back to {info.default}")
            for name, info in type(settings).model_fields.items()
            if getattr(settings, name) != info.default
        ]
    return faults


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """For each class of a module the texts below its fields, by field."""
    source = getattr(sys.modules[module], "__file__", None)
    if source is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(source).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = texts = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    value = getattr(text, "value", None) if isinstance(text, ast.Expr) else None
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        texts[field.target.id] = inspect.cleandoc(value.value)
    return found
