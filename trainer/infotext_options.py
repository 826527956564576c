"""Image-to-image, hires fix and the finer settings of sampling, in the words that infotexts have for them, both ways. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any

from trainer.config.generate import GenerateConfig, UpscalerName
from trainer.infotext import Infotext
from trainer.sampler_names import eta_name

SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")
_UPSCALERS: Mapping[UpscalerName, str] = {
    "latent": "Latent",
    "latent bicubic": "Latent (bicubic)",
    "latent nearest": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
}
# "None" leaves the enlarging to the resize behind it, which is Lanczos.
_SAME_UPSCALER: Mapping[str, UpscalerName] = {"none": "lanczos"}
_SAME_SHAPE = 0.02
FindUpscaler = Callable[[str], str]
"""The name here of the upscaling model that another program calls so; empty where there is none."""
_NUMBERS: Mapping[str, tuple[str, Callable[[str], int | float]]] = {
    "Hires upscale": ("hires_scale", float),
    "Hires steps": ("hires_steps", int),
    "CFG Rescale phi": ("guidance_rescale", float),
    "Mask blur": ("mask_blur", int),
    "Masked area padding": ("mask_padding", int),
}
_HIRES = ("Hires upscale", "Hires resize", "First pass size")


@dataclass
class ReadOptions:
    """What was found.

    Attributes:
        values: of GenerateConfig, not checked.
        read: names of the settings that were understood, casefolded.
        notes: sentences about what is not quite the same here.
    """

    values: dict[str, Any] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def write_options(config: GenerateConfig) -> dict[str, Any]:
    """The settings that are in use, by their names in infotexts."""
    values: dict[str, Any] = {}
    if config.init_image:
        values["Denoising strength"] = f"{config.strength:g}"
    if config.mask:
        values["Mask blur"] = config.mask_blur
        if config.masked_area == "only masked":
            values |= {"Inpaint area": "Only masked", "Masked area padding": config.mask_padding}
    if config.hires_scale > 1:
        values |= {"Denoising strength": f"{config.hires_strength:g}", "Hires upscale": f"{config.hires_scale:g}"}
        values |= {"Hires steps": config.hires_steps} if config.hires_steps else {}
        name = config.hires_upscaler
        values["Hires upscaler"] = next(
            (theirs for ours, theirs in _UPSCALERS.items() if ours == name), ""
        ) or upscaler_title(name)
    if config.eta >= 0 and (name := eta_name(config.sampler)):
        values[name] = f"{config.eta:g}"
    if config.guidance_rescale:
        values["CFG Rescale phi"] = f"{config.guidance_rescale:g}"
    if config.zero_terminal_snr == "yes":
        values["Noise Schedule"] = "Zero Terminal SNR"
    return values | ({"Tiling": True} if config.seamless else {})


def upscaler_title(name: str) -> str:
    """An upscaling model by its file's name, without folder and suffix, as other programs have it; built-in ones as they are."""
    last = PureWindowsPath(name).name
    return next((last[: -len(suffix)] for suffix in (".safetensors", ".pth") if last.casefold().endswith(suffix)), last)


def read_options(text: Infotext, sampler: str, find_model: FindUpscaler = lambda name: "") -> ReadOptions:
    """The same of an infotext, ours or another's, for pictures of this sampler of ours. Never raises.

    `find_model` finds upscaling models.
    """
    found = ReadOptions()
    for name, (key, kind) in _NUMBERS.items():
        if (value := _number(text.get(name), kind)) is not None:
            found.values[key] = value
            found.read.add(name.casefold())
    _hires(text, found, find_model)
    _strength(text, found)
    _eta(text, sampler, found)
    if (tiling := text.get("Tiling").casefold()) in ("true", "false"):
        found.values |= {"seamless": True} if tiling == "true" else {}
        found.read.add("tiling")
    if (noise := text.get("Noise Schedule").casefold()) in ("zero terminal snr", "default"):
        found.values |= {"zero_terminal_snr": "yes"} if noise != "default" else {}
        found.read.add("noise schedule")
    for name, value in text.settings.items():
        # Programs write down, too, that the second pass is as the first.
        is_same = value.casefold().startswith("use same") or name.casefold() == "hires cfg scale"
        if is_same and (value.casefold().startswith("use same") or _is_same(value, text.get("CFG scale"))):
            found.read.add(name.casefold())
    return found


def _hires(text: Infotext, found: ReadOptions, find_model: FindUpscaler) -> None:
    size = SIZE.fullmatch(text.get("Size"))
    first, second = SIZE.fullmatch(text.get("First pass size")), SIZE.fullmatch(text.get("Hires resize"))
    if size and first and (scale := _scale(first, size)):
        # Before 2023 the size was that of the finished picture.
        found.values |= {"hires_scale": scale, "width": int(first[1]), "height": int(first[2])}
        found.read.add("first pass size")
    elif size and second and (scale := _scale(size, second)):
        found.values["hires_scale"] = scale
        found.read.add("hires resize")
    if "hires_scale" in found.values and (upscaler := text.get("Hires upscaler")):
        name, note = find_upscaler(upscaler, find_model)
        found.values["hires_upscaler"] = name
        found.notes += [note] if note else []
        found.read.add("hires upscaler")


def find_upscaler(name: str, find_model: FindUpscaler = lambda name: "") -> tuple[str, str]:
    """Our upscaler for another program's name, and a sentence where it is only the nearest."""
    wanted = name.strip().casefold()
    for ours, theirs in _UPSCALERS.items():
        if theirs.casefold() == wanted:
            return ours, ""
    if wanted in _SAME_UPSCALER:
        return _SAME_UPSCALER[wanted], ""
    if model := find_model(name):
        return model, ""
    near: UpscalerName = "lanczos"
    if wanted.startswith("latent"):
        near = "latent bicubic" if "bicubic" in wanted else "latent nearest" if "nearest" in wanted else "latent"
    return near, f"The upscaler '{name.strip()[:80]}' is not known here: '{near}' was taken."


def _scale(first: re.Match[str], second: re.Match[str]) -> float | None:
    """How many times larger; None where the second has another shape. A side of 0 is left to the other."""
    sides = [(int(first[at]), int(second[at])) for at in (1, 2)]
    scales = [larger / smaller for smaller, larger in sides if larger and smaller]
    if not scales or not all(smaller for smaller, _ in sides) or max(scales) > min(scales) * (1 + _SAME_SHAPE):
        return None
    return round(sum(scales) / len(scales), 4)


def _strength(text: Infotext, found: ReadOptions) -> None:
    strength = _number(text.get("Denoising strength"), float)
    if strength is None:
        return
    found.read.add("denoising strength")
    if any(text.get(name) for name in _HIRES):
        found.values["hires_strength"] = strength
        return
    found.values["strength"] = strength
    mask = " and its mask are" if text.get("Mask blur") else " is"
    found.notes.append(f"It was made from another picture; that{mask} not in this one: choose it as the start picture.")


def _eta(text: Infotext, sampler: str, found: ReadOptions) -> None:
    name = eta_name(sampler)
    if name and (eta := _number(text.get(name), float)) is not None:
        found.values["eta"] = eta
        found.read.add(name.casefold())


def _number(text: str, kind: Callable[[str], int | float]) -> int | float | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _is_same(text: str, other: str) -> bool:
    number = _number(text, float)
    return number is not None and number == _number(other, float)
