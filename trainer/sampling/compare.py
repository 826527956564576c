"""The job that shows what a LoRA does: the same prompts and seeds without and with it, and the style distances."""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from trainer.base_models import list_base_models, resolve_base
from trainer.config.compare import CompareConfig
from trainer.dataset.store import DatasetStore
from trainer.events import Picture
from trainer.files import write_atomically
from trainer.grids import labelled_rows
from trainer.jobs import JobContext
from trainer.library import resolve_lora
from trainer.measures import StyleDistance, style_distance
from trainer.models.components import Components, load_components
from trainer.models.devices import pick_device, pick_dtype
from trainer.paths import DataFolder
from trainer.sampling.sampler import SampleRequest, sample
from trainer.sampling.stack import LoraStack, StackEntry

_BATCH = 4
_SHOWN = 8


def compare(context: JobContext) -> dict[str, Any]:
    """Make the grid. Returns grid, pictures of both rows, seconds, and the style distances where there is a data set."""
    started = time.monotonic()
    config = CompareConfig.model_validate(context.run.config())
    data = context.run.data_folder()
    lora_path = resolve_lora(data, config.lora)
    reference = _reference(config, data)
    prompts = _prompts(config, data)
    context.stage("Loading the base model")
    device = pick_device(config.device)
    components = load_components(config, data, device, pick_dtype("auto", device))
    requests = [_request(config, prompt, config.seed + index, components) for index, prompt in enumerate(prompts)]
    before = _pictures(context, components, requests, "Pictures without the LoRA")
    stack = LoraStack(components)
    stack.set([StackEntry(lora_path, 1.0, 1.0)])
    after = _pictures(context, components, requests, "Pictures with the LoRA")
    result: dict[str, Any] = {"seconds": time.monotonic() - started}
    rows = [("base model", before[:_SHOWN]), (f"with {lora_path.stem}", after[:_SHOWN])]
    if reference:
        rows.append(("pictures it learned from", reference[:_SHOWN]))
        result |= _distances(style_distance(before, reference), style_distance(after, reference))
    grid = context.run.samples / "before-after.png"
    write_atomically(grid, labelled_rows(rows).save, "the before/after grid")
    context.emit(Picture(path="samples/before-after.png", prompt="before / after"))
    return {"grid": str(grid), "lora": str(lora_path), "prompts": prompts, **result}


def _reference(config: CompareConfig, data: DataFolder) -> list[Image.Image]:
    if not config.dataset:
        return []
    scan = DatasetStore(data).scan(config.dataset)
    return [picture.open() for picture in scan.pictures if picture.is_usable]


def _prompts(config: CompareConfig, data: DataFolder) -> list[str]:
    prompts = list(config.prompts)
    if not prompts:
        folder = resolve_base(config.base, data, has_vae=bool(config.vae))
        prompts = [p for model in list_base_models(data) if model.path == folder for p in model.example_prompts]
    prompts = prompts or [""]
    return [f"{config.trigger_word}, {prompt}" if config.trigger_word else prompt for prompt in prompts]


def _request(config: CompareConfig, prompt: str, seed: int, components: Components) -> SampleRequest:
    return SampleRequest(
        prompt=prompt,
        negative_prompt="",
        width=components.resolution,
        height=components.resolution,
        num_inference_steps=config.num_inference_steps,
        sampler=config.sampler,
        guidance_scale=config.guidance_scale,
        seed=seed,
    )


def _pictures(
    context: JobContext, components: Components, requests: list[SampleRequest], stage: str
) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    started = time.monotonic()

    def on_step(step: int, total: int, latents: object) -> None:
        context.check_stop()

    for begin in range(0, len(requests), _BATCH):
        pictures += sample(components, requests[begin : begin + _BATCH], on_step=on_step)
        left = (time.monotonic() - started) / len(pictures) * (len(requests) - len(pictures))
        context.stage(stage, len(pictures), len(requests), left)
    return pictures


def _distances(before: StyleDistance, after: StyleDistance) -> dict[str, Any]:
    return {
        "style_distance_before": before.total,
        "style_distance_after": after.total,
        "style_parts_before": {"colour": before.colour, "edges": before.edges},
        "style_parts_after": {"colour": after.colour, "edges": after.edges},
    }
