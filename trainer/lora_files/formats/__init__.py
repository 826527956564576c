"""Layouts of LoRA files: which keys they have, and which module and which part of it each key is.

Adding a layout: write `formats/<name>.py` with a class that has `name`, `matches` and `split`, and an entry in FORMATS.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from trainer.errors import LoraFileError
from trainer.lora_files.formats.diffusers import DiffusersFormat
from trainer.lora_files.formats.kinds import refuse_other_kinds
from trainer.lora_files.formats.kohya import KohyaFormat
from trainer.lora_files.formats.parts import Part


class Format(Protocol):
    """A layout of keys."""

    name: str

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether a file with these keys has this layout."""
        ...

    def split(self, key: str) -> tuple[str, Part] | None:
        """The kohya name of the module and the part of it that `key` holds; None for a key of another layout."""
        ...


FORMATS: tuple[Format, ...] = (KohyaFormat(), DiffusersFormat())


def split_keys(keys: Iterable[str], where: str) -> tuple[str, dict[str, dict[Part, str]]]:
    """The layout's name, and for each module (by its kohya name) the key of each of its parts.

    Raises: LoraFileError: the file is no plain LoRA or LoCon, or a module lacks a part.
    """
    names = list(keys)
    refuse_other_kinds(names, where)
    for layout in FORMATS:
        if layout.matches(names):
            return layout.name, _group(names, layout, where)
    raise LoraFileError(
        "This file holds no LoRA that Inkwash knows.",
        where=where,
        fix="Use a LoRA for Stable Diffusion 1.x in the usual (kohya) or in diffusers layout.",
    )


def _group(keys: list[str], layout: Format, where: str) -> dict[str, dict[Part, str]]:
    modules: dict[str, dict[Part, str]] = {}
    unknown: list[str] = []
    for key in keys:
        found = layout.split(key)
        if found is None:
            unknown.append(key)
            continue
        module, part = found
        parts = modules.setdefault(module, {})
        if part in parts:
            raise LoraFileError(f"'{parts[part]}' and '{key}' are the same part of one layer.", where=where)
        parts[part] = key
    if unknown:
        raise LoraFileError(
            f"The file mixes a LoRA in {layout.name} layout with {len(unknown)} other tensors, such as '{unknown[0]}'.",
            where=where,
            fix="Use the file as its author published it, or another version of it.",
        )
    lacking = [name for name, parts in modules.items() if not {"down", "up"} <= parts.keys()]
    if lacking:
        raise LoraFileError(
            f"{len(lacking)} layers of the LoRA lack one of their two matrices, such as '{lacking[0]}'.",
            where=where,
            fix="The file is incomplete; get it again.",
        )
    return modules
