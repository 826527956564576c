"""Settings in and out: presets, TOML files, dotted paths; validated once, with every fault at its field."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import ValidationError

from trainer.config.base import Settings
from trainer.config.bring import BringConfig, RestoreConfig
from trainer.config.caption import CaptionConfig
from trainer.config.download import DownloadConfig
from trainer.config.fetch import FetchConfig
from trainer.config.fields import describe
from trainer.config.generate import GenerateConfig
from trainer.config.grid import GridConfig
from trainer.config.migrate import migrate
from trainer.config.run import RunConfig
from trainer.config.tools import TOOLS, ToolSettings
from trainer.config.upscale import UpscaleConfig
from trainer.errors import ConfigError, Finding
from trainer.files import safe_name, write_text
from trainer.paths import PRESETS

Config = TypeVar("Config", bound=Settings)

PRESET_KEY = "preset"
"""The table of a preset file that describes the preset itself: title, description."""


@dataclass(frozen=True)
class Preset:
    """A named set of settings on top of the defaults."""

    name: str
    title: str
    description: str
    path: Path
    is_bundled: bool


def list_presets(folders: Sequence[Path] = (PRESETS,)) -> list[Preset]:
    """All presets in `folders`; the first folder is the bundled one. Files that cannot be read are refused when chosen."""
    found: dict[str, Preset] = {}
    for index, folder in enumerate(folders):
        for path in sorted(folder.glob("*.toml")):
            try:
                about = read_toml(path).get(PRESET_KEY, {})
            except ConfigError as error:
                about = {"title": f"{path.stem} (cannot be read)", "description": str(error)}
            title, text = str(about.get("title", path.stem)), str(about.get("description", ""))
            found[path.stem] = Preset(path.stem, title, text, path, index == 0)
    return list(found.values())


def load_preset(name: str, folders: Sequence[Path] = (PRESETS,)) -> dict[str, Any]:
    """The settings of a preset as a nested dict, not yet validated. Raises ConfigError."""
    presets = {preset.name: preset for preset in list_presets(folders)}
    if name not in presets:
        raise ConfigError(f"There is no preset named '{name}'.", fix=f"Choose one of: {', '.join(presets)}.")
    return read_settings(presets[name].path)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data. Raises ConfigError that names line and column."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"The file {path} does not exist.", where=str(path), fix="Check its name and folder."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The file {path} cannot be read as text: {error}", where=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path.name} is not valid TOML: {error}.",
            where=str(path),
            fix="Mend the line named, or write the file anew.",
        ) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a TOML or JSON file as a nested dict of the current schema version, not yet validated."""
    if path.suffix.lower() == ".json":
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path.name} is not a readable JSON file: {error}", where=str(path)) from error
    else:
        data = read_toml(path)
    data.pop(PRESET_KEY, None)
    return migrate(data)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts merged, later ones win; lists are replaced whole."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merge(result[key], value)
            else:
                result[key] = copy.deepcopy(value)
    return result


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return result


def flatten(config: RunConfig) -> dict[str, Any]:
    """All settings by dotted path, in schema order."""
    data = config.model_dump(mode="json")
    result: dict[str, Any] = {}
    for spec in describe():
        value: Any = data
        for part in spec.path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        result[spec.path] = value
    return result


def build_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Validate merged layers (defaults < preset < file < flags or form).

    Raises: ConfigError with one finding a fault, each at its dotted path.
    """
    return _validated(RunConfig, merge(*layers), "train")


def build_generate_config(values: Mapping[str, Any]) -> GenerateConfig:
    """Validate the settings of a generation. Raises ConfigError with one finding a fault, each at its dotted path."""
    return _validated(GenerateConfig, values, "generate")


def build_grid_config(values: Mapping[str, Any]) -> GridConfig:
    """Validate the settings of a grid. Raises ConfigError with one finding a fault, each at its dotted path."""
    return _validated(GridConfig, values, "grid")


def build_upscale_config(values: Mapping[str, Any]) -> UpscaleConfig:
    """Validate what is to be enlarged. Raises ConfigError with one finding a fault, each at its dotted path."""
    return _validated(UpscaleConfig, values, "upscale")


def build_tool_settings(tool: str, values: Mapping[str, Any]) -> ToolSettings:
    """Validate what is asked of a LoRA tool. Raises ConfigError with one finding a fault, each at its dotted path."""
    if tool not in TOOLS:
        raise ConfigError(f"There is no tool '{tool}'.", fix=f"Choose one of: {', '.join(TOOLS)}.")
    return _validated(TOOLS[tool], values, f"lora {tool}")


def build_download_config(values: Mapping[str, Any]) -> DownloadConfig:
    """Validate what is to be downloaded. Raises ConfigError with one finding a fault, each at its dotted path."""
    return _validated(DownloadConfig, values, "model download")


def build_fetch_config(values: Mapping[str, Any]) -> FetchConfig:
    """Validate what is to be fetched. Raises ConfigError with one finding a fault."""
    return _validated(FetchConfig, values, "dataset")


def build_bring_config(values: Mapping[str, Any]) -> BringConfig:
    """Validate what is to be brought in. Raises ConfigError with one finding a fault."""
    return _validated(BringConfig, values, "dataset")


def build_restore_config(values: Mapping[str, Any]) -> RestoreConfig:
    """Validate which run's data set is to be made anew. Raises ConfigError with one finding a fault."""
    return _validated(RestoreConfig, values, "dataset")


def build_caption_config(values: Mapping[str, Any]) -> CaptionConfig:
    """Validate what is asked of a captioner. Raises ConfigError with one finding a fault, each at its dotted path."""
    return _validated(CaptionConfig, values, "caption")


def _validated(model: type[Config], values: Mapping[str, Any], command: str) -> Config:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        findings = _config_findings(error, model)
        raise ConfigError(
            "Some settings cannot be used." if len(findings) > 1 else "A setting cannot be used.",
            findings=findings,
            fix=f"Change the settings named; `inkwash {command} --help` lists all of them with their ranges.",
        ) from error


_NOTHING_GIVEN = ("missing", "string_too_short", "too_short")


def _config_findings(error: ValidationError, model: type[Settings]) -> list[Finding]:
    """pydantic's faults as findings at dotted paths, in words for users."""
    known = {spec.path: spec for spec in describe(model)}
    findings: list[Finding] = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if not path and fault["type"] == "value_error":
            for line in str(fault["msg"]).removeprefix("Value error, ").split("\n"):
                where, _, message = line.partition(": ")
                findings.append(Finding(where, message))
            continue
        message = str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"there is no such setting{_did_you_mean(path, list(known))}"
        elif path in known and known[path].is_required and fault["type"] in _NOTHING_GIVEN:
            message = {"lora": "choose a LoRA", "model": "choose a base model"}.get(known[path].names, "is needed")
        elif path in known and known[path].range_text and fault["type"] != "value_error":
            message = f"{message} (got {fault['input']!r}; allowed: {known[path].range_text})"
        findings.append(Finding(path, message))
    return findings


def _did_you_mean(path: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


_OWN_DATA = ("data.dataset", "data.concepts", "data.prior.dataset")
"""What a run is about, not how it is done: no part of a preset."""


def write_preset(config: RunConfig, folder: Path, name: str, description: str = "") -> Path:
    """Write the settings that differ from the defaults, each with its help as a comment. Returns the file's path."""
    document = tomlkit.document()
    about = tomlkit.table()
    about.add("title", name)
    about.add("description", description)
    document.add(PRESET_KEY, about)
    values, tables = flatten(config), {"": document}
    for spec in describe():
        if values[spec.path] == spec.default or spec.path in _OWN_DATA:
            continue
        parent = spec.path.rpartition(".")[0]
        table = _table(tables, parent)
        table.add(tomlkit.comment(spec.help))
        table.add(spec.name, values[spec.path])
    path = folder / f"{safe_name(name, 'preset')}.toml"
    write_text(path, tomlkit.dumps(document), "the preset")
    return path


def _table(tables: dict[str, Any], path: str) -> Any:
    if path not in tables:
        parent, _, name = path.rpartition(".")
        table = tomlkit.table()
        _table(tables, parent).add(name, table)
        tables[path] = table
    return tables[path]
