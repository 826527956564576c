"""Axes that are about LoRAs: their weights, their block weights, which file, which of the stack. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from trainer.blocks import parse_blocks
from trainer.config.generate import StackedLora
from trainer.errors import InkwashError
from trainer.files import is_file
from trainer.grid.settings import Axis, Change, Choice, GridSettings
from trainer.grid.values import AxisFault, Value, expand_numbers, number_text
from trainer.library import SUFFIX, list_loras, resolve_lora
from trainer.lora_lookup import find_lora
from trainer.paths import DataFolder
from trainer.runs import find_run

LORA_AXES = {
    "lora": ("unet_weight", "text_encoder_weight"),
    "lora_unet": ("unet_weight",),
    "lora_text": ("text_encoder_weight",),
    "blocks": ("blocks",),
}
"""What an axis of this kind sets of the LoRA that it names."""
_MAX_WEIGHT = 10
_NONE = "none"


def weight_values(kind: str, name: str, values: Sequence[Value], settings: GridSettings) -> Axis:
    """`lora:NAME=0-1:0.25`: weights of a LoRA, which is put on the stack where it is not there. Raises AxisFault."""
    file = _file_of(name, 0, settings)
    choices: list[Choice] = []
    for value in values:
        for number in expand_numbers(value, is_whole=False):
            if abs(number) > _MAX_WEIGHT:
                raise AxisFault(value.at, f"the weight {number:f} is too large: -{_MAX_WEIGHT} to {_MAX_WEIGHT} can be")
            new = dict.fromkeys(LORA_AXES[kind], float(number))
            choices.append(Choice(number_text(float(number)), _with_lora(file, new), value.at))
    part = {"lora_unet": " UNet", "lora_text": " text"}.get(kind, "")
    return Axis(f"{_label(file, settings)}{part}", f"{kind}:{file}", tuple(choices))


def block_values(kind: str, name: str, values: Sequence[Value], settings: GridSettings) -> Axis:
    """`blocks:NAME=ALL,MIDD,"1,0,1,…"`: block weights of a LoRA. Raises AxisFault."""
    file = _file_of(name, 0, settings)
    choices: list[Choice] = []
    for value in values:
        try:
            parse_blocks(value.text)
        except ValueError as error:
            hint = "; lists stand in quotes" if re.fullmatch(r"[\d.]+", value.text) else ""
            raise AxisFault(value.at, f"{error}{hint}") from error
        choices.append(Choice(value.text or "ALL", _with_lora(file, {"blocks": value.text}), value.at))
    return Axis(f"{_label(file, settings)} blocks", f"{kind}:{file}", tuple(choices))


def file_values(values: Sequence[Value], settings: GridSettings) -> Axis:
    """`lora=NAME,NAME,none`: which file takes the place of the stack's first, with its weights. Raises AxisFault."""
    rows: list[tuple[str | None, int]] = []
    for value in values:
        is_none = value.text.casefold() == _NONE
        rows += [(file, value.at) for file in ([None] if is_none else _files(value, settings.data))]
    labels = file_labels([file for file, _ in rows if file is not None], settings.data)
    choices = [Choice("no LoRA" if file is None else labels[file], _with_first(file), at) for file, at in rows]
    return Axis("", "lora", tuple(choices))


def used_values(values: Sequence[Value], settings: GridSettings) -> Axis:
    """`loras=each`: which LoRAs of the stack are used. Raises AxisFault."""
    files = [str(lora["file"]) for lora in settings.stack if lora.get("is_on", True)]
    labels = file_labels(files, settings.data)
    names = list(dict.fromkeys(labels.values()))
    if not names:
        raise AxisFault(values[0].at, "there is no LoRA on the stack: put some on it first")
    wanted: list[tuple[str, set[str], int]] = []
    for value in values:
        text = value.text.casefold()
        if text in ("each", "each-without"):
            wanted += [(label, chosen, value.at) for label, chosen in _each(names, has_without=text != "each")]
        else:
            wanted.append((*_chosen(value, names), value.at))
    choices = [
        Choice(label, _with_used({file for file in files if labels[file] in chosen}), at)
        for label, chosen, at in wanted
    ]
    return Axis("", "loras", tuple(choices))


def file_labels(files: Sequence[str], data: DataFolder) -> dict[str, str]:
    """What LoRAs are called in labels, by what the stack calls them: by the file's name alone; where another file has the same,
    by the library's name, or with the run or the folder before it; else by the path. One file has one label."""
    paths = {file: _path(file, data) or Path(file) for file in files}
    found: dict[str, str] = {}
    for name in (lambda path: short_name(str(path)), lambda path: _long_name(path, data), str):
        left = {file: name(path) for file, path in paths.items() if file not in found}
        for file, label in left.items():
            if len({paths[other] for other, same in left.items() if same == label}) == 1:
                found[file] = label
    return {file: found[file] for file in paths}


def _long_name(path: Path, data: DataFolder) -> str:
    if path.is_relative_to(data.loras):
        return path.relative_to(data.loras).as_posix().removesuffix(SUFFIX)
    is_export = path.is_relative_to(data.runs)
    return f"{path.relative_to(data.runs).parts[0] if is_export else path.parent.name}/{short_name(str(path))}"


def _label(file: str, settings: GridSettings) -> str:
    return file_labels([*(str(lora["file"]) for lora in settings.stack), file], settings.data)[file]


def short_name(file: str) -> str:
    """A LoRA's file as labels and tags call it."""
    return (PureWindowsPath(file).name or file).removesuffix(SUFFIX)


def _each(names: list[str], *, has_without: bool) -> list[tuple[str, set[str]]]:
    """None, each alone, all; between them all but one where that is wanted and says something new."""
    rows = [("no LoRA", set[str]()), *((name, {name}) for name in names)]
    if has_without and len(names) > 2:
        rows += [(f"without {name}", set(names) - {name}) for name in names]
    return [*rows, ("all LoRAs", set(names))] if len(names) > 1 else rows


def _chosen(value: Value, names: list[str]) -> tuple[str, set[str]]:
    text = value.text.strip()
    if text.casefold() in (_NONE, "all"):
        return ("no LoRA", set()) if text.casefold() == _NONE else ("all LoRAs", set(names))
    if text.startswith("-") and text not in names:
        name = _known(text[1:].strip(), value, names)
        return f"without {name}", set(names) - {name}
    parts = [text] if text in names else text.split("+")
    found = [_known(part.strip(), value, names) for part in parts]
    return " + ".join(found), set(found)


def _known(name: str, value: Value, names: list[str]) -> str:
    wanted = name.casefold()
    exact = [known for known in names if known.casefold() == wanted]
    found = exact or [known for known in names if short_name(known).casefold() == short_name(name).casefold()]
    if not found:
        raise AxisFault(value.at, f"there is no '{name}' on the stack; there are {', '.join(names)}")
    return _only(name, value.at, found)


def _only(name: str, at: int, found: Sequence[str]) -> str:
    if len(found) > 1:
        raise AxisFault(at, f"'{name}' can be any of {len(found)} LoRAs; write {' or '.join(found)}")
    return found[0]


def _file_of(name: str, at: int, settings: GridSettings) -> str:
    """The file that is meant, as the stack calls it where it is there, else as the library or the disk does."""
    on_stack = list(dict.fromkeys(str(lora["file"]) for lora in settings.stack))
    labels = file_labels(on_stack, settings.data)
    named = [file for file in on_stack if name in (file, labels[file])]
    named = named or [file for file in on_stack if name == short_name(file)]
    if named:
        _only(name, at, list(dict.fromkeys(labels[file] for file in named)))
        return named[0]
    try:
        found = _lora(name, settings.data)
    except InkwashError as error:
        raise AxisFault(at, f"{error.message} {error.fix}".rstrip()) from error
    path = resolve_lora(settings.data, found)
    return next((file for file in on_stack if _path(file, settings.data) == path), found)


def _path(file: str, data: DataFolder) -> Path | None:
    try:
        return resolve_lora(data, file)
    except InkwashError:
        return None


def _lora(name: str, data: DataFolder) -> str:
    """A LoRA by name, hash or path. Raises LoraFileError."""
    path = Path(name).expanduser()
    if path.suffix == SUFFIX and is_file(path):
        return str(path.absolute())
    return find_lora(data, name).name


def _files(value: Value, data: DataFolder) -> list[str]:
    text = value.text
    try:
        if text.startswith("run:"):
            run = find_run(data, text.removeprefix("run:").strip())
            files = sorted(run.lora.glob(f"*{SUFFIX}"), key=lambda path: (path.stat().st_mtime, path.name))
            if not files:
                raise AxisFault(value.at, f"the run {run.id} has exported no LoRA yet")
            return [str(path) for path in files]
        if "*" in text or "?" in text:
            names = [entry.name for entry in list_loras(data) if entry.info is not None]
            found = sorted((name for name in names if fnmatch.fnmatch(name.casefold(), text.casefold())), key=_natural)
            if not found:
                raise AxisFault(value.at, f"no LoRA of the library is called '{text}'")
            return found
        return [_lora(text, data)]
    except InkwashError as error:
        raise AxisFault(value.at, f"{error.message} {error.fix}".rstrip()) from error


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by their size: step9 before step10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.casefold())]


def _with_lora(file: str, new: dict[str, Any]) -> Change:
    """That LoRA with other values, put on the stack where it is not there."""

    def change(values: dict[str, Any]) -> dict[str, Any]:
        stack = [dict(lora) for lora in values.get("loras", ())]
        mine = [lora for lora in stack if lora["file"] == file]
        if not mine:
            mine = [StackedLora(file=file).model_dump(mode="json")]
            stack += mine
        for lora in mine:
            lora |= {**new, "is_on": True}
        return {**values, "loras": stack}

    return change


def _with_first(file: str | None) -> Change:
    def change(values: dict[str, Any]) -> dict[str, Any]:
        stack = [dict(lora) for lora in values.get("loras", ())]
        if file is None:
            return {**values, "loras": stack[1:]}
        first = stack[0] if stack else StackedLora(file=file).model_dump(mode="json")
        return {**values, "loras": [{**first, "file": file}, *stack[1:]]}

    return change


def _with_used(files: set[str]) -> Change:
    def change(values: dict[str, Any]) -> dict[str, Any]:
        stack = [
            {**lora, "is_on": lora.get("is_on", True) and str(lora["file"]) in files}
            for lora in values.get("loras", ())
        ]
        return {**values, "loras": stack}

    return change
