"""The job that enlarges pictures by an upscaling model."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.config.upscale import UpscaleConfig
from trainer.dataset.pictures import open_picture
from trainer.errors import ConfigError, InkwashError
from trainer.events import Picture, Started
from trainer.files import unused_path
from trainer.jobs import JobContext
from trainer.models.devices import pick_device
from trainer.picture_texts import FORMATS, read_picture_texts, write_picture
from trainer.sampling.upscaling import job_upscaler
from trainer.upscalers import require_upscaler

_MOST_PIXELS = 16384 * 16384


def upscale(context: JobContext) -> dict[str, Any]:
    """Enlarge the pictures of a run's UpscaleConfig, in their order, into today's folder of the outputs. Recipes in them are kept.

    Returns: `pictures` (absolute paths), `seconds`.
    Raises: ConfigError, DatasetError, ModelFileError, ResourceError: as their messages say. Cancelled: the user stopped.
    """
    config = UpscaleConfig.model_validate(context.run.config())
    data = context.run.data_folder()
    device = pick_device(config.device)
    context.emit(Started(pid=os.getpid(), device=str(device)))
    context.stage("Loading the upscaling model")
    started, made = time.monotonic(), list[str]()
    folder = data.outputs / datetime.now().strftime("%Y-%m-%d")
    with job_upscaler(require_upscaler(data, config.upscaler), context).loaded(device) as upscaling:
        for index, source in enumerate(map(Path, config.pictures)):
            picture = open_picture(source)
            scale = config.scale or upscaling.scale
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            if size[0] * size[1] > _MOST_PIXELS:
                raise ConfigError(
                    f"'{source.name}' would have {size[0]} x {size[1]} pixels.",
                    where="scale",
                    fix="Choose a smaller scale; 16384 x 16384 pixels are the most.",
                )
            large = upscaling.picture(picture, size)
            wanted = unused_path(folder / f"{source.stem}-{scale:g}x{FORMATS[config.output_format]}")
            path = write_picture(large, wanted, _texts(source), config.quality)
            made.append(str(path))
            context.emit(Picture(index=index, path=str(path)))
    return {"pictures": made, "seconds": round(time.monotonic() - started, 3)}


def _texts(source: Path) -> dict[str, str]:
    """How the picture was made, where it says so."""
    try:
        return dict(read_picture_texts(source).texts)
    except InkwashError:
        return {}  # of a format that carries none
