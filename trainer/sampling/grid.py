"""The grid job: a picture for every cell, those that are there already left as they are, and the labelled picture of all."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from trainer import __version__
from trainer.base_models import resolve_base, resolve_vae
from trainer.config.generate import GenerateConfig
from trainer.config.grid import GridConfig
from trainer.config.loading import build_grid_config
from trainer.errors import NonFinitePictureError
from trainer.events import Event, Picture, Stage, Started, Warned
from trainer.files import file_sha256, unused_path, write_atomically, write_json
from trainer.grid.plan import GridPlan, plan_grid
from trainer.grids import GridCanvas
from trainer.jobs import JobContext
from trainer.library import named_embeddings, resolve_lora
from trainer.paths import DataFolder
from trainer.sampling.job import make_pictures, newest_change
from trainer.upscalers import check_upscaler

PREVIEW_NAME = "grid-preview.jpg"
_PREVIEW_SIDE = 1024
_MOST_SIDE = 512
_KEY_DIGITS = 32
_USUAL_PIXELS = 512


def make_grid(context: JobContext) -> dict[str, Any]:
    """Make the grid of a run's GridConfig.

    Each cell is kept under a hash of all that decides what it shows, so that a grid that was stopped or killed, or has
    other values on an axis now, makes the missing cells only.

    A cell whose settings give NaN, such as a LoRA at ten times its weight, says so in its place, and the others are made.

    Returns: `grid` and `recipe` (paths of the labelled picture and of the settings that make it again), `pictures` (of the
        cells, row by row), `made`, `kept` and `failed` (how many cells are new, how many were there, and of how many there
        is no picture), `seconds`.
    Raises: as `trainer.sampling.job.generate`; ConfigError: an axis cannot be used.
    """
    started = time.monotonic()
    data = context.run.data_folder()
    config = build_grid_config(context.run.config())
    plan = plan_grid(config, data)
    grid = _Grid(context, config, plan, data)
    keys = [_cell_key(cell.config, data) for cell in plan.cells]
    missing: list[int] = []
    for index in plan.order():
        path = _kept(data, keys[index])
        if path is None:
            missing.append(index)
        else:
            grid.add(index, path)
    progress = _Progress(context, [_cost(plan.cells[index].config) for index in missing], len(plan.cells))
    for number, index in enumerate(missing):
        context.check_stop()
        progress.begin(number)
        cell = replace(context, emit=progress)
        try:
            path = Path(make_pictures(cell, plan.cells[index].config)["pictures"][0])
        except NonFinitePictureError as error:
            grid.fail(index, error)
            continue
        _keep(data, keys[index], path)
        grid.add(index, path)
        grid.show()
    return {
        **grid.finish(),
        "made": len(missing) - grid.num_failed,
        "kept": len(plan.cells) - len(missing),
        "failed": grid.num_failed,
        "seconds": round(time.monotonic() - started, 3),
    }


class _Grid:
    """The pictures so far, and the labelled one."""

    def __init__(self, context: JobContext, config: GridConfig, plan: GridPlan, data: DataFolder) -> None:
        self._context, self._config, self._plan, self._data = context, config, plan, data
        self._canvas: GridCanvas | None = None
        self._paths: dict[int, Path] = {}
        self._failed: dict[int, NonFinitePictureError] = {}

    @property
    def num_failed(self) -> int:
        """Of how many cells there is no picture."""
        return len(self._failed)

    def fail(self, index: int, error: NonFinitePictureError) -> None:
        """There is no picture of a cell."""
        cell, plan = self._plan.cells[index], self._plan
        labels = (plan.x.labels()[cell.x], plan.y.labels()[cell.y], plan.z.labels()[cell.z])
        which = ", ".join(label for label in labels if label)
        self._context.emit(Warned(message=f"No picture of {which or 'the cell'}: {error.message} {error.fix}"))
        self._failed[index] = error

    def add(self, index: int, path: Path) -> None:
        """A cell is there."""
        cell = self._plan.cells[index]
        with Image.open(path) as picture:
            canvas = self._canvas or self._new_canvas(picture)
            canvas.paste(picture, cell.x, cell.y, cell.z)
        self._paths[index] = path
        # The labelled picture comes before its cells, in the order of indices.
        event = Picture(index=index + 1, prompt=cell.config.prompt, seed=cell.config.seed, path=str(path))
        self._context.emit(event)

    def _new_canvas(self, first: Image.Image) -> GridCanvas:
        longest = max(first.size)
        scale = (self._config.cell or min(longest, _MOST_SIDE)) / longest
        size = max(1, round(first.width * scale)), max(1, round(first.height * scale))
        plan = self._plan
        self._canvas = GridCanvas((plan.x.labels(), plan.y.labels(), plan.z.labels()), size)
        return self._canvas

    def show(self) -> None:
        """Show what there is so far."""
        if self._canvas is None:
            return
        image = self._canvas.image.copy()
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        path = self._context.run.folder / PREVIEW_NAME
        write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=85), "the preview")
        self._context.emit(Picture(path=PREVIEW_NAME, prompt="grid", is_preview=True))

    def finish(self) -> dict[str, Any]:
        """Save the labelled picture and its settings, beside the cells."""
        if self._canvas is None:
            # Not one picture: the reason is the job's.
            raise next(iter(self._failed.values()), None) or ValueError("a grid has at least one cell")
        for index, error in self._failed.items():
            cell = self._plan.cells[index]
            self._canvas.say(error.message, cell.x, cell.y, cell.z)
        folder = self._data.outputs / datetime.now().strftime("%Y-%m-%d")
        path = unused_path(folder / f"{datetime.now().strftime('%H%M%S')}-grid.png")
        image = self._canvas.image
        write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), "the grid")
        recipe = path.with_suffix(".json")
        write_json(recipe, self._config.model_dump(mode="json", exclude_defaults=True), "the grid's settings")
        (self._context.run.folder / PREVIEW_NAME).unlink(missing_ok=True)
        self._context.emit(Picture(index=0, prompt="grid", path=str(path)))
        pictures = [str(path) for _, path in sorted(self._paths.items())]
        return {"grid": str(path), "recipe": str(recipe), "pictures": pictures}


class _Progress:
    """What a cell's making says, as progress of the whole grid.

    Args:
        context: the grid's.
        costs: of the cells that are made, in their order.
        total: how many cells there are, with those that were kept.
    """

    def __init__(self, context: JobContext, costs: list[float], total: int) -> None:
        self._context, self._costs, self._total = context, costs, total
        self._number = 0
        self._started = time.monotonic()
        self._said: set[str] = set()

    def begin(self, number: int) -> None:
        """The cell with this number, from 0, is made now."""
        self._number = number

    def __call__(self, event: Event) -> None:
        """Pass an event on, once or in the grid's terms; pictures are the grid's to tell."""
        match event:
            case Stage() if event.total:
                self._context.emit(self._stage(event))
            case Stage():
                self._once(event.name, event)
            case Started():
                self._once("started", event)
            case Warned():
                self._once(event.message, event)
            case _:
                pass

    def _once(self, key: str, event: Event) -> None:
        if key not in self._said:
            self._said.add(key)
            self._context.emit(event)

    def _stage(self, event: Stage) -> Stage:
        done = sum(self._costs[: self._number]) + self._costs[self._number] * event.done / event.total
        left = (time.monotonic() - self._started) / done * (sum(self._costs) - done) if done else None
        cells = self._total - len(self._costs) + self._number + (event.done == event.total)
        return Stage(
            name="Pictures of the grid",
            done=cells,
            total=self._total,
            eta_seconds=None if left is None else round(left, 1),
            memory_bytes=event.memory_bytes,
        )


def _cost(config: GenerateConfig) -> float:
    """What a cell costs beside others: steps times pixels."""
    pixels = (config.width or _USUAL_PIXELS) * (config.height or _USUAL_PIXELS)
    return float(config.num_inference_steps * pixels)


def _cell_key(config: GenerateConfig, data: DataFolder) -> str:
    """A hash of all that decides what a cell shows: settings, contents of LoRAs, embeddings and VAE, state of the base model."""
    values = config.model_dump(mode="json")
    values["loras"] = [
        {**lora, "file": _content(resolve_lora(data, lora["file"]))} for lora in values["loras"] if lora["is_on"]
    ]
    if upscaler := check_upscaler(config, data):
        values["hires_upscaler"] = _content(upscaler)
    if config.vae:
        vae = resolve_vae(config.vae)
        values["vae"] = _content(vae) if vae.is_file() else [str(vae), newest_change(vae)]
    base = resolve_base(config.base, data, has_vae=bool(config.vae))
    embeddings = named_embeddings(data, config.prompt, config.negative_prompt)
    words = [(entry.path.stem, _content(entry.path)) for entry in embeddings]
    facts = [__version__, values, base.name, newest_change(base), words]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]


def _content(path: Path) -> str:
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def _kept_path(data: DataFolder, key: str) -> Path:
    return data.cache / "grid-cells" / f"{key}.json"


def _kept(data: DataFolder, key: str) -> Path | None:
    """The picture of a cell that was made before, if it is still there and whole."""
    try:
        name = json.loads(_kept_path(data, key).read_text(encoding="utf-8"))["picture"]
        path = data.outputs / name
        with Image.open(path) as picture:
            picture.load()
        return path
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):
        return None


def _keep(data: DataFolder, key: str, path: Path) -> None:
    write_json(_kept_path(data, key), {"picture": path.relative_to(data.outputs).as_posix()})
