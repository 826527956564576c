"""Asking for grids: the form's settings and the axes as typed, checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.services.generation import GenerationService
from app.services.stack_rows import Row
from trainer.config.grid import GridConfig
from trainer.config.loading import build_grid_config
from trainer.grid.plan import grid_title, prepare_grid
from trainer.jobs import enqueue
from trainer.paths import DataFolder
from trainer.runs import create_run

EACH_LORA = "loras=each"
"""The axis that shows what each LoRA of the stack does."""


class GridService:
    """Grids of a data folder.

    Args:
        data: the data folder.
        generation: what checks the form.
    """

    def __init__(self, data: DataFolder, generation: GenerationService) -> None:
        self._data, self._generation = data, generation

    def check(self, values: Mapping[str, Any], stack: Sequence[Row], axes: Mapping[str, str]) -> tuple[GridConfig, int]:
        """The grid's settings, with how many pictures it has. The form's count does not matter: a cell is one picture.

        Raises: ConfigError with one finding a fault, at the setting or the axis; LoraFileError.
        """
        common = self._generation.check({**values, "count": 1}, stack)
        config = build_grid_config({**common.model_dump(mode="json"), **axes})
        ready, plan = prepare_grid(config, self._data)
        return ready, len(plan.cells)

    def start(self, config: GridConfig) -> str:
        """Put a grid in the queue. Returns the run's id."""
        run = create_run(self._data, "grid", grid_title(config), config.model_dump(mode="json"))
        enqueue(run, self._data)
        return run.id
