"""A picture's recipe as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.render import text
from app.services.stack_rows import about, row_from
from trainer.found_recipe import FoundRecipe

_NAMES = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt",
    "base": "Base model",
    "num_inference_steps": "Steps",
    "sampler": "Sampler",
    "eta": "Eta",
    "guidance_scale": "Guidance",
    "guidance_rescale": "Guidance rescale",
    "seed": "Seed",
    "clip_skip": "CLIP skip",
}
# What they are when they are not used: not worth a line.
_UNUSED = {"eta": -1, "guidance_rescale": 0, "clip_skip": 1}


def recipe(settings: Mapping[str, Any]) -> str:
    """A picture's settings as a list; of the optional ones those in use."""
    lines: list[tuple[str, Any]] = []
    for key, title in _NAMES.items():
        value = settings.get(key)
        if value not in ("", None) and not (key in _UNUSED and value == _UNUSED[key]):
            lines.append((title, value))
        if key == "base" and settings.get("width"):
            lines.append(("Size", f"{settings['width']} × {settings.get('height')}"))
    lines += _passes(settings)
    for lora in settings.get("loras", ()):
        weights = f"UNet {lora['unet_weight']:g}, text encoder {lora['text_encoder_weight']:g}"
        if more := about(row_from(lora)):
            weights += f", {more}"
        lines.append(("LoRA", f"{Path(str(lora['file'])).name} ({weights})"))
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in lines)
    return f'<dl class="recipe">{inner}</dl>'


def _passes(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it was made from, and how it was enlarged."""
    lines: list[tuple[str, str]] = []
    if start := settings.get("init_image"):
        mask = ", where the mask is white" if settings.get("mask") else ""
        lines.append(("Start picture", f"{Path(str(start)).name}, {settings.get('strength', 0):.0%} made anew{mask}"))
    if (scale := settings.get("hires_scale", 1)) > 1:
        how = (settings.get("hires_upscaler"), settings.get("hires_strength"), settings.get("hires_steps"))
        parts = [f"{scale:g} ×", how[0], f"{how[1]:.0%} made anew" if how[1] is not None else ""]
        lines.append(("Hires fix", ", ".join(part for part in (*parts, f"{how[2]} steps" if how[2] else "") if part)))
    return [*lines, ("Seamless", "yes")] if settings.get("seamless") else lines


def found_recipe(found: FoundRecipe) -> str:
    """A recipe read from a picture: its settings, and what is otherwise here."""
    lines = [f"The library lacks: {', '.join(found.missing)}."] if found.missing else []
    lines += found.notes
    notes = "".join(f'<div class="run-warning">{text(line)}</div>' for line in lines)
    origin = "" if found.source == "Inkwash" else f'<div class="hint">A picture of {text(found.source)}.</div>'
    return origin + recipe(found.settings) + notes
