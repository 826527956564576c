"""The LoRA tools as the Tools tab sees them: choices, checks before anything starts, and the figures of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models import list_base_models
from trainer.base_models.listing import find_base
from trainer.config.fields import FieldSpec, describe
from trainer.config.loading import build_tool_settings
from trainer.config.tools import TOOLS
from trainer.errors import ConfigError, Finding, LoraFileError, ModelFileError
from trainer.files import is_inside
from trainer.jobs import enqueue
from trainer.library import SUFFIX, list_loras, resolve_lora
from trainer.paths import DataFolder
from trainer.runs import Run, create_run
from trainer.tools.job import FIGURES_NAME, PICTURE_NAME

log = logging.getLogger(__name__)
_MAX_TITLE = 60
_MAX_PICTURE_BYTES = 2_000_000


@dataclass(frozen=True)
class Figures:
    """What a run of a tool found and wrote.

    Attributes:
        tables: each as (header, rows), all texts.
        picture: SVG that our engine drew; empty where there is none.
        files: what was written, the main file first.
    """

    lines: tuple[str, ...] = ()
    tables: tuple[tuple[Sequence[str], Sequence[Sequence[str]]], ...] = ()
    picture: str = ""
    files: tuple[Path, ...] = ()


class ToolService:
    """Runs of LoRA tools in a data folder."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data

    def loras(self) -> list[str]:
        """Names of the library's LoRAs, newest first; also of those that cannot be used, for looking into them."""
        return [entry.name for entry in list_loras(self._data)]

    def models(self) -> list[tuple[str, str]]:
        """(title, name) of the base models."""
        return [(info.label, info.name) for info in list_base_models(self._data)]

    def faults(self, tool: str, values: Mapping[str, Any]) -> list[Finding]:
        """Everything that keeps the settings from being run, each at its field."""
        try:
            build_tool_settings(tool, values)
        except ConfigError as error:
            return list(error.findings) or [Finding(error.where, error.message)]
        return [fault for spec in describe(TOOLS[tool]) if spec.names for fault in self._not_there(spec, values)]

    def _not_there(self, spec: FieldSpec, values: Mapping[str, Any]) -> list[Finding]:
        """What a field names and this computer has not."""
        given = values.get(spec.path)
        names = [entry["file"] for entry in given] if isinstance(given, list) else [given] if given else []
        found: list[Finding] = []
        for name in map(str, names):
            try:
                if spec.names == "lora":
                    resolve_lora(self._data, name)
                else:
                    find_base(name, self._data)
            except (LoraFileError, ModelFileError) as error:
                found.append(Finding(spec.path, f"{error.message} {error.fix}".strip()))
        return found

    def start(self, tool: str, values: Mapping[str, Any]) -> str:
        """Put a run of a tool in the queue. Returns its id.

        Raises: ConfigError: the settings cannot be run; one finding a fault.
        """
        faults = self.faults(tool, values)
        if faults:
            raise ConfigError("The tool cannot start with these settings.", findings=faults)
        settings = build_tool_settings(tool, values).model_dump(mode="json")
        run = create_run(self._data, "tool", _title(tool, settings), {"tool": tool, "settings": settings})
        enqueue(run, self._data)
        return run.id

    def figures(self, run: Run) -> Figures:
        """What a finished run found; nothing where its folder does not say."""
        try:
            found = json.loads((run.folder / FIGURES_NAME).read_text(encoding="utf-8"))
            tables = tuple((table["header"], table["rows"]) for table in found["tables"])
            picture = run.folder / PICTURE_NAME
            drawn = picture.is_file() and picture.stat().st_size < _MAX_PICTURE_BYTES
            return Figures(
                tuple(found["lines"]),
                tables,
                picture.read_text(encoding="utf-8") if drawn else "",
                tuple(Path(file) for file in found["files"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("The figures of %s cannot be read", run.id, exc_info=True)
            return Figures()

    def library_name(self, figures: Figures) -> str | None:
        """The library's name for what a run wrote, if it lies there."""
        for file in figures.files:
            if file.suffix == SUFFIX and file.is_file() and is_inside(file, self._data.loras):
                return file.resolve().relative_to(self._data.loras.resolve()).as_posix().removesuffix(SUFFIX)
        return None


def _title(tool: str, settings: Mapping[str, Any]) -> str:
    """The tool and what it works on."""
    names: list[str] = []
    for spec in describe(TOOLS[tool]):
        given = settings.get(spec.path)
        if spec.names and spec.is_required:
            names += [entry["file"] for entry in given] if isinstance(given, list) else [str(given)]
    return f"{TOOLS[tool].title}: {', '.join(Path(name).stem for name in names)}"[:_MAX_TITLE]
