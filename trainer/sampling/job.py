"""The generation job: settings to picture files with their recipe inside. Base model and LoRAs stay in memory between jobs."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trainer.base_models import describe_base, resolve_base, resolve_vae
from trainer.base_models.scan import known_sha256, model_sha256
from trainer.config.generate import MAX_SEED, GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.errors import ResourceError, is_out_of_memory
from trainer.events import Picture, Stage, Started, Warned
from trainer.files import unused_path, write_atomically
from trainer.init_pictures import open_init, open_mask, with_kept_pictures
from trainer.jobs import JobContext
from trainer.library import named_embeddings, resolve_lora
from trainer.lora_lookup import hashes_of, with_tagged_loras
from trainer.models.components import Components, load_components
from trainer.models.devices import dtype_name, memory_bytes, pick_device, pick_dtype
from trainer.paths import DataFolder
from trainer.picture_texts import FORMATS
from trainer.recipe import Recipe, RecipeHashes, save_picture
from trainer.sampling.making import Maker, picture_size
from trainer.sampling.painting import Painting
from trainer.sampling.preview import LatentPreview
from trainer.sampling.savers import MemorySavers, free_memory
from trainer.sampling.schedule import StackSchedule
from trainer.sampling.stack import LoraStack, StackEntry
from trainer.sampling.upscaling import model_upscaler
from trainer.sampling.words import library_words

log = logging.getLogger(__name__)
PREVIEW_NAME = "preview.jpg"
# Of the time: rough views are shown at each step where they cost no more.
_PREVIEW_SHARE = 0.1
_MAX_BATCH = 8
# Pixels denoised at once: more is hardly faster, and the first picture comes later.
_BATCH_PIXELS = {"cpu": 256 * 256}
_GPU_BATCH_PIXELS = 2 * 512 * 512
_RANDOM_SEEDS = 2**32


@dataclass
class _Warm:
    """What stays in memory from one job to the next."""

    key: tuple[str, ...]
    components: Components
    stack: LoraStack
    preview: LatentPreview
    title: str


_warm: _Warm | None = None


def generate(context: JobContext) -> dict[str, Any]:
    """Make the pictures of a run's GenerateConfig.

    Returns: `pictures` (absolute paths), `seeds`, `seconds` (of the denoising alone), `base`, `width`, `height`.
    Raises: ConfigError, ModelFileError, LoraFileError, ResourceError: as their messages say. Cancelled: the user stopped.
    """
    return make_pictures(context, build_generate_config(context.run.config()))


def make_pictures(context: JobContext, settings: GenerateConfig) -> dict[str, Any]:
    """Make the pictures of these settings, with the model of the last call where it is the same. As `generate`."""
    data = context.run.data_folder()
    config = with_kept_pictures(with_tagged_loras(settings, data), data)
    init = open_init(config, data) if config.init_image else None
    entries = _stack_entries(config, data)
    upscaler = model_upscaler(config, data, context)
    warm = _load(config, data, context)
    width, height = size = picture_size(config, warm.components, init)
    mask = open_mask(config, data) if config.mask else None
    painting = Painting.of(config, init, mask, size) if init else None
    schedule = _apply_stack(warm, entries, context, is_seamless=config.seamless)
    _learn_words(warm, config, data, context)
    seed = secrets.randbelow(_RANDOM_SEEDS) if config.seed < 0 else config.seed
    seeds = [(seed + index) % (MAX_SEED + 1) for index in range(config.count)]
    started = time.monotonic()
    savers = MemorySavers(warm.components, can_move_text=all((e.start, e.end) == (0, 1) for e in entries))
    maker = Maker(config, warm.components, schedule, size, painting, upscaler)
    try:
        paths = _Pictures(context, config, warm, maker, savers, size, seeds).make()
    finally:
        savers.undo()
    return {
        "pictures": [str(path) for path in paths],
        "seeds": seeds,
        "seconds": round(time.monotonic() - started, 3),
        "base": warm.components.name,
        "width": width,
        "height": height,
    }


def release() -> None:
    """Forget the model that is kept in memory."""
    global _warm
    _warm = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stack_entries(config: GenerateConfig, data: DataFolder) -> list[StackEntry]:
    return [StackEntry.of(lora, resolve_lora(data, lora.file)) for lora in config.loras if lora.is_on]


def _load(config: GenerateConfig, data: DataFolder, context: JobContext) -> _Warm:
    """The base model: the one kept if it is the same, else loaded anew after the old one is gone."""
    global _warm
    device = pick_device(config.device)
    dtype = pick_dtype(config.precision, device)
    folder = resolve_base(config.base, data, has_vae=bool(config.vae))
    vae = resolve_vae(config.vae) if config.vae else None
    chosen = (str(vae), newest_change(vae) if vae else "", config.prediction_type, config.zero_terminal_snr)
    key = (str(folder), newest_change(folder), str(device), str(dtype), *chosen)
    context.emit(Started(pid=os.getpid(), device=str(device), precision=dtype_name(dtype)))
    if _warm is None or _warm.key != key:
        release()
        context.stage("Loading the base model")
        components = load_components(config, data, device, dtype)
        stack, preview = LoraStack(components), LatentPreview(components)
        _warm = _Warm(key, components, stack, preview, describe_base(folder).title)
    context.check_stop()
    return _warm


def newest_change(folder: Path) -> str:
    """When a model, a folder or a file, was changed last: in nanoseconds."""
    if folder.is_file():
        return str(folder.stat().st_mtime_ns)
    return str(max((file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()), default=0))


def _apply_stack(
    warm: _Warm, entries: Sequence[StackEntry], context: JobContext, *, is_seamless: bool
) -> StackSchedule:
    context.stage("Applying the LoRAs" if entries else "Preparing")
    warm.stack.load(entries)
    for name, unknown in warm.stack.unknown.items():
        text = f"{len(unknown)} layers of the LoRA '{name}' are not in the base model, or not of that shape, and were left out, such as '{unknown[0]}'."
        context.emit(Warned(message=text))
    context.check_stop()
    # What works beside a layer does not know of its circular edges.
    return StackSchedule(warm.stack, warm.components, entries, "merged" if is_seamless else "auto")


def _learn_words(warm: _Warm, config: GenerateConfig, data: DataFolder, context: JobContext) -> None:
    """Make the library's embeddings that the prompts name known to the model, and no others."""
    components = warm.components
    words, unfit = library_words(named_embeddings(data, config.prompt, config.negative_prompt), components)
    components.words.set("library", words)
    for error in unfit:
        context.emit(Warned(message=f"{error.message} Its name in the prompt is an ordinary word."))


def _recipe_hashes(context: JobContext, config: GenerateConfig, warm: _Warm) -> RecipeHashes:
    """By what other programs know the files in use. Each is read once, ever for a base model, and again when it changes."""
    data = context.run.data_folder()
    base = Path(warm.key[0])
    vae = resolve_vae(config.vae) if config.vae else None
    if any(path.is_file() and not known_sha256(data, path) for path in (base, vae) if path):
        context.stage("Reading the base model's hash (once)")
    files = [resolve_lora(data, lora.file) for lora in config.loras if lora.is_on]
    words = named_embeddings(data, config.prompt, config.negative_prompt)
    return RecipeHashes(
        model=model_sha256(data, base) if base.is_file() else "",  # nobody else knows a folder by a hash
        loras=[hashes_of(file)[1] for file in files],
        embeddings={entry.path.stem: hashes_of(entry.path)[0] for entry in words},
        vae=model_sha256(data, vae) if vae and vae.is_file() else "",
    )


class _Pictures:
    """The pictures of one job: batches, progress, previews, saving."""

    def __init__(
        self,
        context: JobContext,
        config: GenerateConfig,
        warm: _Warm,
        maker: Maker,
        savers: MemorySavers,
        size: tuple[int, int],
        seeds: Sequence[int],
    ) -> None:
        self._context, self._config, self._warm, self._size, self._seeds = context, config, warm, size, seeds
        self._maker, self._savers = maker, savers
        self._folder = context.run.data_folder().outputs / datetime.now().strftime("%Y-%m-%d")
        self._paths: list[Path] = []
        self._hashes = _recipe_hashes(context, config, warm)
        self._started, self._next_preview = time.monotonic(), 0.0

    def make(self) -> list[Path]:
        """Make and save all of them; returns their paths in the order of the seeds."""
        batch = self._batch_size()
        while len(self._paths) < len(self._seeds):
            seeds = self._seeds[len(self._paths) : len(self._paths) + batch]
            try:
                images = self._maker.make(seeds, self._on_step)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                images = None
            # Outside the handler, so that the traceback no longer holds the failed attempt's memory.
            if images is None:
                self._save_memory(is_batch=batch > 1)
                batch = 1
                continue
            for seed, image in zip(seeds, images, strict=True):
                self._save(seed, image)
        (self._context.run.folder / PREVIEW_NAME).unlink(missing_ok=True)
        return self._paths

    def _batch_size(self) -> int:
        budget = _BATCH_PIXELS.get(self._warm.components.device.type, _GPU_BATCH_PIXELS)
        width, height = self._maker.largest
        return max(1, min(_MAX_BATCH, budget // (width * height), len(self._seeds)))

    def _save_memory(self, *, is_batch: bool) -> None:
        """Take the next step towards less memory and say so. Raises ResourceError: there is none left."""
        device = self._warm.components.device
        free_memory(device)
        words = "pictures are made one by one" if is_batch else self._savers.take_next()
        if words is None:
            width, height = self._maker.largest
            raise ResourceError(
                f"The memory is not enough for a picture of {width} x {height} pixels, though it was made in the smallest pieces.",
                fix="Choose a smaller size, close other programs, or set the device to cpu.",
            )
        log.warning("Out of memory; now %s", words)
        self._context.emit(Warned(message=f"The memory was not enough. From here on {words}, which takes longer."))

    def _on_step(self, step: int, total: int, latents: Tensor) -> None:
        self._context.check_stop()
        done = len(self._paths) + len(latents) * step / total
        remaining = (time.monotonic() - self._started) / done * (len(self._seeds) - done)
        steps_in_all = round(total * len(self._seeds) / len(latents))
        stage = Stage(
            name="Generating",
            done=round(done / len(self._seeds) * steps_in_all),
            total=steps_in_all,
            eta_seconds=round(remaining, 1),
            memory_bytes=memory_bytes(self._warm.components.device),
        )
        self._context.emit(stage)
        if step < total and time.monotonic() >= self._next_preview:
            begun = time.monotonic()
            self._show(latents[0])
            self._next_preview = time.monotonic() + (time.monotonic() - begun) / _PREVIEW_SHARE

    def _show(self, latents: Tensor) -> None:
        image = self._warm.preview.picture(latents)
        path = self._context.run.folder / PREVIEW_NAME
        write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=80), "the preview")
        index = len(self._paths)
        picture = Picture(
            index=index, prompt=self._config.prompt, seed=self._seeds[index], path=PREVIEW_NAME, is_preview=True
        )
        self._context.emit(picture)

    def _save(self, seed: int, image: Image.Image) -> None:
        width, height = self._size
        suffix = FORMATS[self._config.output_format]
        wanted = unused_path(self._folder / f"{datetime.now().strftime('%H%M%S')}-{seed}{suffix}")
        path = save_picture(image, wanted, Recipe(self._config, seed, width, height, self._warm.title, self._hashes))
        if path != wanted:
            self._context.emit(Warned(message=f"{path.name} is a PNG: JPEG has no room for so long a recipe."))
        self._context.emit(Picture(index=len(self._paths), prompt=self._config.prompt, seed=seed, path=str(path)))
        self._paths.append(path)
