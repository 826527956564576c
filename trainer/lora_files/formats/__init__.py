"""Layouts of LoRA files: how they name modules. What follows the module's name is the same in all: see `parts`.

Adding a layout: write a class with `name` and `module_name` in a module here, and an entry in FORMATS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from trainer.errors import LoraFileError
from trainer.lora_files.formats.diffusers import ComfyFormat, DiffusersFormat, PeftFormat
from trainer.lora_files.formats.kohya import A1111Format, KohyaFormat, LycorisFormat
from trainer.lora_files.formats.parts import Part, split_part
from trainer.lora_files.formats.refusals import refuse_no_lora

MAX_UNREAD_SHARE = 0.25
_BUNDLE_PREFIX = "bundle_emb."


class Format(Protocol):
    """A layout of names."""

    name: str

    def module_name(self, module: str) -> str | None:
        """The canonical kohya name of a key's module; None for a module of another layout."""
        ...


FORMATS: tuple[Format, ...] = (
    KohyaFormat(),
    DiffusersFormat(),
    PeftFormat(),
    ComfyFormat(),
    LycorisFormat(),
    A1111Format(),
)


@dataclass(frozen=True)
class SplitKeys:
    """What the keys of a file are.

    Attributes:
        layout: the name of the format that most keys have.
        modules: for each module, by its canonical kohya name, the key of each of its parts.
        embeddings: for each bundled textual-inversion embedding the key of each of its parts.
        unread: keys that are nothing known.
    """

    layout: str
    modules: Mapping[str, Mapping[Part, str]]
    embeddings: Mapping[str, Mapping[str, str]]
    unread: tuple[str, ...]


def split_keys(keys: Iterable[str], where: str) -> SplitKeys:
    """Sort the keys of a file by module and part.

    Raises: LoraFileError: the file is no LoRA, two keys are the same part of one layer, or most are unknown.
    """
    names = list(keys)
    refuse_no_lora(names, where)
    modules: dict[str, dict[Part, str]] = {}
    embeddings: dict[str, dict[str, str]] = {}
    unread: list[str] = []
    layouts: Counter[str] = Counter()
    for key in names:
        if key.startswith(_BUNDLE_PREFIX) and key.count(".") > 1:
            _, name, part = key.split(".", 2)
            embeddings.setdefault(name, {})[part] = key
            continue
        found = _find(key)
        if found is None:
            unread.append(key)
            continue
        layout, module, part = found
        layouts[layout] += 1
        parts = modules.setdefault(module, {})
        if part in parts:
            raise LoraFileError(f"'{parts[part]}' and '{key}' are the same part of one layer.", where=where)
        parts[part] = key
    if not modules:
        raise LoraFileError(
            "This file holds no LoRA that Inkwash knows.",
            where=where,
            fix="Use a LoRA for Stable Diffusion 1.x, 2.x or XL.",
        )
    layout = layouts.most_common(1)[0][0]
    if len(unread) > MAX_UNREAD_SHARE * len(names):
        raise LoraFileError(
            f"The file mixes a LoRA in {layout} layout with {len(unread)} other tensors, such as '{unread[0]}'.",
            where=where,
            fix="Use the file as its author published it, or another version of it.",
        )
    return SplitKeys(layout, modules, embeddings, tuple(unread))


def _find(key: str) -> tuple[str, str, Part] | None:
    split = split_part(key)
    if split is None:
        return None
    module, part = split
    for layout in FORMATS:
        name = layout.module_name(module)
        if name is not None:
            return layout.name, name, part
    return None
