"""Where the LoRAs of the form's stack fight: asking for it, and its suggestion as rows of the stack."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.services.generation import GenerationService
from app.services.stack_rows import Row, row_values
from app.services.tools import Figures, ToolService
from trainer.errors import ConfigError
from trainer.paths import DataFolder
from trainer.runs import Run
from trainer.tools.job import REPORT_NAME

log = logging.getLogger(__name__)
_TOOL = "conflicts"


class ConflictService:
    """Conflicts of stacks in a data folder.

    Args:
        data: the data folder.
        generation: what knows the library.
    """

    def __init__(self, data: DataFolder, generation: GenerationService) -> None:
        self._generation = generation
        self._tools = ToolService(data)

    def start(self, rows: Sequence[Row], base: str) -> str:
        """Put the measurement in the queue. Returns the run's id. Raises ConfigError: there are not two LoRAs that are on."""
        used = [row for row in rows if row["on"]]
        if len(used) < 2:
            raise ConfigError("One LoRA has nothing to fight with.", fix="Put two or more on the stack.")
        return self._tools.start(_TOOL, {"loras": [row_values(row) for row in used], "base": base})

    def figures(self, run: Run) -> Figures:
        """What a finished run found."""
        return self._tools.figures(run)

    def suggested(self, run: Run, rows: Sequence[Row]) -> list[Row] | None:
        """The stack with the suggested weights; None where nothing is suggested, or the stack is another one by now."""
        wanted = self._suggestions(run)
        now = [row_values(row) for row in rows if row["on"]]
        if not wanted or _in_order(run.config()["settings"]["loras"]) != _in_order(now):
            return None
        return [{**row, **wanted[row["name"]]} if row["on"] and row["name"] in wanted else row for row in rows]

    def _suggestions(self, run: Run) -> dict[str, dict[str, Any]]:
        """What the row of each LoRA is to have, by the library's name of it."""
        try:
            report: dict[str, Any] = json.loads((run.folder / REPORT_NAME).read_text(encoding="utf-8"))
            return {self._generation.find_lora(item["file"]) or "": _row_values(item) for item in report["suggestion"]}
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("The figures of %s cannot be read", run.id, exc_info=True)
            return {}


def _in_order(loras: Iterable[Mapping[str, Any]]) -> list[list[tuple[str, Any]]]:
    """LoRAs of a stack, so that two stacks can be compared: their order does not change the picture."""
    return sorted(sorted(lora.items()) for lora in loras)


def _row_values(item: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {"unet": item["new_unet_weight"], "text": item["new_text_encoder_weight"]}
    return {**values, "blocks": item["new_blocks"]} if item.get("new_blocks") else values
