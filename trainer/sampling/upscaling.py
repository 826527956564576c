"""A picture made larger by an upscaling model: in tiles that overlap, so that it fits into memory and can be cancelled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.config.generate import GenerateConfig
from trainer.errors import is_out_of_memory
from trainer.events import Warned
from trainer.jobs import JobContext
from trainer.models.upscaler import UpscalerModel, load_upscaler
from trainer.paths import DataFolder
from trainer.sampling.sampler import to_image
from trainer.sampling.savers import free_memory
from trainer.upscalers import check_upscaler

log = logging.getLogger(__name__)
OnTile = Callable[[int, int], None]
"""Called before each tile with how many are done, and of how many. May raise Cancelled."""
# A tile on a processor takes seconds: smaller ones let a generation be cancelled sooner.
_TILE, _CPU_TILE, _LEAST_TILE = 512, 192, 64
_OVERLAP = 32
_GRID = 16


@dataclass(frozen=True)
class ModelUpscaler:
    """What is asked of an upscaling model.

    Attributes:
        path: its file.
        on_tile: see `OnTile`.
        on_shortage: called with the side of the tiles in pixels, when the memory was not enough and they became smaller.
    """

    path: Path
    on_tile: OnTile
    on_shortage: Callable[[int], None]

    @contextmanager
    def loaded(self, device: torch.device) -> Iterator[Upscaling]:
        """The model on the device, as long as it is needed."""
        work = Upscaling(load_upscaler(self.path).to(device), device, self.on_tile, self.on_shortage)
        try:
            yield work
        finally:
            work.release()
            free_memory(device)


def model_upscaler(config: GenerateConfig, data: DataFolder, context: JobContext) -> ModelUpscaler | None:
    """What enlarges the pictures of a job, telling it how far it is; None where no model does. Raises as `check_upscaler`."""
    path = check_upscaler(config, data)
    return job_upscaler(path, context) if path else None


def job_upscaler(path: Path, context: JobContext) -> ModelUpscaler:
    """A model that tells a job how far it is, and stops when the job is to stop."""

    def on_tile(done: int, total: int) -> None:
        context.check_stop()
        context.stage(f"Enlarging by {path.stem}", done, total)

    def on_shortage(side: int) -> None:
        log.warning("Out of memory while enlarging; now tiles of %d pixels", side)
        text = f"The memory was not enough to enlarge the picture. It is done in tiles of {side} pixels, which takes longer."
        context.emit(Warned(message=text))

    return ModelUpscaler(path, on_tile, on_shortage)


class Upscaling:
    """A model at work.

    Args:
        model: on `device`.
        device: where it computes.
        on_tile, on_shortage: as of ModelUpscaler.
        tile: the longest side that goes through the model at once, in pixels, 64 or more; 0 for the device's usual.
    """

    def __init__(
        self,
        model: UpscalerModel,
        device: torch.device,
        on_tile: OnTile = lambda done, total: None,
        on_shortage: Callable[[int], None] = lambda side: None,
        tile: int = 0,
    ) -> None:
        self._model, self._device, self._on_tile, self._on_shortage = model, device, on_tile, on_shortage
        self._tile = tile or (_CPU_TILE if device.type == "cpu" else _TILE)

    @property
    def scale(self) -> int:
        """The model's own."""
        return self._model.scale

    def picture(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """An RGB picture at `size` (width and height): through the model until it is no smaller, then resized by Lanczos.

        Raises: what torch raises where the memory is not enough for the smallest tiles. Whatever `on_tile` raises.
        """
        while picture.width < size[0] or picture.height < size[1]:
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255).permute(2, 0, 1)
            picture = to_image(self.pixels(pixels))
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)

    def release(self) -> None:
        """Let go of the model."""
        del self._model

    def pixels(self, pixels: Tensor) -> Tensor:
        """`(3, height, width)` float32 in [0, 1], the model's scale times larger, on the CPU. Raises as `picture`."""
        while True:
            try:
                return self._in_tiles(pixels)
            except (RuntimeError, MemoryError) as error:
                side = min(self._tile, max(pixels.shape[1:]))
                if not is_out_of_memory(error) or side <= _LEAST_TILE or not self._model.is_tileable:
                    raise
            # Outside the handler, so that the traceback no longer holds the failed attempt's memory.
            self._tile = max(_LEAST_TILE, side // 2 // _GRID * _GRID)
            free_memory(self._device)
            self._on_shortage(self._tile)

    def _in_tiles(self, pixels: Tensor) -> Tensor:
        """Tiles overlap, and fade into each other there: no seam is left of their edges, which see less than their middles."""
        scale, (height, width) = self._model.scale, pixels.shape[1:]
        tile = self._tile if self._model.is_tileable else max(height, width)
        boxes = list(product(_spans(height, tile), _spans(width, tile)))
        total = torch.zeros(3, height * scale, width * scale)
        weights = torch.zeros(1, height * scale, width * scale)
        for done, ((top, bottom), (left, right)) in enumerate(boxes):
            self._on_tile(done, len(boxes))
            part = pixels[None, :, top:bottom, left:right].to(self._device)
            made = self._model(part)[0].cpu()
            fade = _fade(top, bottom, height, tile, scale)[:, None] * _fade(left, right, width, tile, scale)
            place = slice(top * scale, bottom * scale), slice(left * scale, right * scale)
            total[:, *place] += made * fade
            weights[:, *place] += fade
        return total / weights


def _step(tile: int) -> int:
    """From one tile to the next, in pixels: tiles begin where a model's own windows, or its unshuffled pixels, begin."""
    return (tile - min(_OVERLAP, tile // 4)) // _GRID * _GRID


def _spans(length: int, tile: int) -> list[tuple[int, int]]:
    """Parts of a side, at most `tile` long, that overlap by what `_step` leaves of it: (first, behind the last) each."""
    if length <= tile:
        return [(0, length)]
    step = _step(tile)
    return [(first, min(first + tile, length)) for first in range(0, length - (tile - step), step)]


def _fade(first: int, last: int, length: int, tile: int, scale: int) -> Tensor:
    """Weights along a side of a tile, 1 at the picture's own edges. Where another tile overlaps, its outermost quarter of the overlap,
    which sees least, counts for nothing, and the half behind it rises to 1."""
    overlap, size = (tile - _step(tile)) * scale, (last - first) * scale
    positions = torch.arange(size, dtype=torch.float32) + 0.5
    rising = (positions / overlap * 2 - 0.5).clamp(0, 1) if first else torch.ones(size)
    falling = ((size - positions) / overlap * 2 - 0.5).clamp(0, 1) if last < length else torch.ones(size)
    return rising * falling
