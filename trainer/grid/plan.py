"""A grid's settings to its cells, and in which order they are made. Imports no torch."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.generate import GenerateConfig
from trainer.config.grid import AXIS_NAMES, GridAxes, GridConfig
from trainer.config.loading import build_generate_config
from trainer.errors import ConfigError, Finding, InkwashError
from trainer.grid.axes import read_axis
from trainer.grid.settings import Axis, Choice, GridSettings
from trainer.grid.values import AxisFault
from trainer.init_pictures import with_kept_pictures
from trainer.library import SUFFIX, resolve_lora
from trainer.lora_lookup import with_tagged_loras
from trainer.lora_tags import read_tags
from trainer.paths import DataFolder
from trainer.upscalers import check_upscaler

MAX_CELLS = 2048
_SEEDS = 2**32
_LOADED = ("base", "vae", "prediction_type", "zero_terminal_snr", "precision", "device")
_ONE = Axis("", "", (Choice("", dict, 0),))


@dataclass(frozen=True)
class Cell:
    """A picture of a grid: where it stands, from 0, and its settings, LoRAs of tags on the stack."""

    x: int
    y: int
    z: int
    config: GenerateConfig


@dataclass(frozen=True)
class GridPlan:
    """A grid's axes (an axis that is not used has one value without a label) and its cells, row by row."""

    x: Axis
    y: Axis
    z: Axis
    cells: tuple[Cell, ...]

    def order(self) -> list[int]:
        """The cells in the order in which they cost least: the base model changes least often, then the LoRAs."""
        bases: dict[Hashable, int] = {}
        stacks: dict[Hashable, int] = {}

        def cost(index: int) -> tuple[int, int, int]:
            values = self.cells[index].config.model_dump(mode="json")
            base = tuple(str(values[name]) for name in _LOADED)
            stack = json.dumps([lora for lora in values["loras"] if lora["is_on"]])
            return bases.setdefault(base, len(bases)), stacks.setdefault(stack, len(stacks)), index

        return sorted(range(len(self.cells)), key=cost)


def prepare_grid(config: GridConfig, data: DataFolder) -> tuple[GridConfig, GridPlan]:
    """A grid that is about to be started: checked, and with all decided that would be another each time.

    Returns: the settings with a seed, pictures kept in the data folder, and LoRAs of the library by name; the plan.
    Raises: ConfigError: as `plan_grid`; a picture is missing.
    """
    seeded = config if config.seed >= 0 else config.model_copy(update={"seed": secrets.randbelow(_SEEDS)})
    kept = with_kept_pictures(seeded, data)
    named = [_library_name(lora.file, data) if lora.is_on else lora.file for lora in config.loras]
    loras = [lora.model_copy(update={"file": name}) for lora, name in zip(config.loras, named, strict=True)]
    ready = GridConfig.model_validate({**kept.model_dump(), "loras": [lora.model_dump() for lora in loras]})
    return ready, plan_grid(ready, data)


def grid_title(config: GridConfig) -> str:
    """What differs, as one word: a run's id, which people type, has it."""
    names = [axis.partition("=")[0] for axis in (config.x, config.y, config.z) if axis]
    return "-".join(["grid", *(re.sub(r"\W+", "-", name).strip("-") for name in names)])


def plan_grid(config: GridConfig, data: DataFolder) -> GridPlan:
    """The cells of a grid.

    Raises: ConfigError: an axis cannot be read, with its name and the place in its text; two axes change the same; there
        are too many cells; a combination cannot be made. LoraFileError: a LoRA of the stack is missing.
    """
    values = _common(config)
    check_upscaler(build_generate_config(values), data)
    for lora in config.loras:
        if lora.is_on:
            resolve_lora(data, lora.file)
    tagged = with_tagged_loras(build_generate_config(values), data)
    stack = [lora.model_dump(mode="json") for lora in tagged.loras]
    settings = GridSettings(values, stack, data)
    axes = _axes(config, settings)
    count = len(axes[0].choices) * len(axes[1].choices) * len(axes[2].choices)
    if count > MAX_CELLS:
        raise ConfigError(
            f"The grid would have {count} pictures; {MAX_CELLS} are the most.",
            where=", ".join(name for name in AXIS_NAMES if getattr(config, name)),
            fix="Leave out some values.",
        )
    known: dict[Hashable, Any] = {}
    cells = [
        Cell(x, y, z, _cell((first, second, third), settings, known))
        for z, third in enumerate(axes[2].choices)
        for y, second in enumerate(axes[1].choices)
        for x, first in enumerate(axes[0].choices)
    ]
    return GridPlan(axes[0], axes[1], axes[2], tuple(cells))


def _common(config: GridConfig) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in GridAxes.model_fields}


def _axes(config: GridConfig, settings: GridSettings) -> list[Axis]:
    axes: list[Axis] = []
    findings: list[Finding] = []
    targets: dict[str, str] = {}
    for name in AXIS_NAMES:
        text = getattr(config, name)
        if not text:
            axes.append(_ONE)
            continue
        try:
            axis = read_axis(text, settings)
        except AxisFault as fault:
            findings.append(Finding(name, f"at character {fault.at + 1}: {fault}"))
            continue
        if axis.target in targets:
            findings.append(Finding(name, f"at character 1: {targets[axis.target]} changes the same setting already"))
        targets.setdefault(axis.target, name)
        axes.append(axis)
    if findings:
        raise ConfigError(
            "An axis of the grid cannot be used." if len(findings) == 1 else "Axes of the grid cannot be used.",
            where=findings[0].where,
            findings=findings,
            fix="Write a setting, '=' and its values: cfg=3,5,7, steps=10-30:10, sampler=Euler,DDIM, lora:NAME=0-1:0.25.",
        )
    return axes


def _cell(choices: Sequence[Choice], settings: GridSettings, known: dict[Hashable, Any]) -> GenerateConfig:
    """The settings of a cell: prompts first, then the LoRAs of their tags, then everything else."""
    values: dict[str, Any] = dict(settings.values)
    try:
        for choice in choices:
            values = choice.change(values) if choice.is_prompt else values
        values = _with_tags_read(values, settings, known)
        for choice in choices:
            values = values if choice.is_prompt else choice.change(values)
        return with_tagged_loras(build_generate_config(values), settings.data)
    except InkwashError as error:
        which = ", ".join(choice.label for choice in choices if choice.label)
        findings = [Finding(which, finding.message) for finding in error.findings] or [Finding(which, error.message)]
        raise ConfigError(
            "A combination of the grid cannot be made.", where=which, findings=findings, fix=error.fix
        ) from error


def _with_tags_read(values: dict[str, Any], settings: GridSettings, known: dict[Hashable, Any]) -> dict[str, Any]:
    """LoRAs of the prompt's tags on the stack. `known` remembers what tags mean: the library is not listed for every cell."""
    if not read_tags(str(values.get("prompt", ""))).tags:
        return values
    key = values["prompt"], values.get("negative_prompt"), values.get("num_inference_steps")
    if key not in known:
        tagged = with_tagged_loras(build_generate_config(values), settings.data)
        known[key] = {"prompt": tagged.prompt, "loras": tagged.model_dump(mode="json")["loras"]}
    return {**values, **known[key]}


def _library_name(file: str, data: DataFolder) -> str:
    """The library's name for a file of it; other files as they are called."""
    path = resolve_lora(data, file)
    return path.relative_to(data.loras).as_posix().removesuffix(SUFFIX) if path.is_relative_to(data.loras) else file
