"""The axes of a grid: `NAME=VALUES` as people type it, to changes of the settings that all cells have in common.

NAME is a setting of a generation (`guidance_scale`, or for short `cfg`), or one of:

    prompt s/r     the first value is looked for in the prompts, and replaced by each
    size           512x512, 512x768
    lora:NAME      both weights of a LoRA; lora_unet:NAME and lora_text:NAME one of them; blocks:NAME its block weights
    lora           which file is used: names, `none`, names with * (ink-step*), or `run:RUN` for all exports of a run
    loras          which of the stack are used: none, all, NAME, A+B, -NAME for all but it; `each` for none, each alone, all

Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from trainer.base_models import resolve_base
from trainer.config.fields import FieldSpec, describe
from trainer.config.generate import GenerateConfig
from trainer.config.loading import build_generate_config
from trainer.errors import ConfigError, InkwashError
from trainer.grid.lora_axes import LORA_AXES, block_values, file_values, used_values, weight_values
from trainer.grid.settings import Axis, Change, Choice, GridSettings
from trainer.grid.values import AxisFault, Value, expand_numbers, number_text, split_values
from trainer.init_pictures import with_kept_pictures
from trainer.upscalers import resolve_upscaler

_SHORT = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "steps": "num_inference_steps",
    "model": "base",
    "checkpoint": "base",
    "base_model": "base",
    "denoise": "strength",
    "denoising": "strength",
    "denoising_strength": "strength",
    "negative": "negative_prompt",
    "sampling_steps": "num_inference_steps",
    "s/r": "prompt_s/r",
    "sr": "prompt_s/r",
    "prompt_sr": "prompt_s/r",
}
_BEFORE_TAGS = ("prompt", "negative_prompt", "num_inference_steps")
_NO_AXIS = ("loras", "count")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_SIZE = re.compile(r"(\d+)\s*[x×]\s*(\d+)")


def read_axis(text: str, settings: GridSettings) -> Axis:
    """An axis as typed.

    Args:
        text: `NAME=VALUES`.
        settings: what all cells have in common, which each value is checked with.

    Raises: AxisFault: the name is unknown, or a value cannot be used; it knows where it stands.
    """
    name, equals, _ = text.partition("=")
    if not equals:
        raise AxisFault(0, "write a setting, '=' and its values, such as cfg=3,5,7")
    begin = len(name) + 1
    written = name.strip()
    kind, _, about = written.partition(":")
    kind = _plain(kind)
    values = split_values(text, begin)
    if about.strip() and kind in LORA_AXES:
        read = block_values if kind == "blocks" else weight_values
        axis = read(kind, about.strip(), values, settings)
    elif kind in LORA_AXES and kind != "lora":
        raise AxisFault(0, f"'{written}' names no LoRA: write {kind}:NAME={text[begin:].strip()}")
    else:
        axis = _named(_SHORT.get(kind, kind), written, values, settings)
    _require_different(axis, values)
    return axis


def _named(kind: str, written: str, values: Sequence[Value], settings: GridSettings) -> Axis:
    special: dict[str, Callable[[Sequence[Value], GridSettings], Axis]] = {
        "lora": file_values,
        "loras": used_values,
        "prompt_s/r": _replacements,
        "size": _sizes,
    }
    if kind in special:
        return special[kind](values, settings)
    spec = _fields().get(kind)
    if spec is None:
        names = [*_fields(), *_SHORT, *special, *(f"{name}:NAME" for name in LORA_AXES)]
        close = difflib.get_close_matches(kind, names, n=2, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(names))}"
        raise AxisFault(0, f"'{written}' is no setting that can be an axis{hint}")
    choices = [choice for value in values for choice in _choices(spec, value, settings)]
    return Axis(written, spec.path, tuple(choices))


@cache
def _fields() -> dict[str, FieldSpec]:
    return {spec.path: spec for spec in describe(GenerateConfig) if spec.path not in _NO_AXIS}


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _choices(spec: FieldSpec, value: Value, settings: GridSettings) -> list[Choice]:
    """What a value of an ordinary setting stands for; more than one for a range."""
    contents: list[Any]
    if spec.kind in ("int", "float"):
        numbers = expand_numbers(value, is_whole=spec.kind == "int")
        contents = [int(number) if spec.kind == "int" else float(number) for number in numbers]
    else:
        contents = [_content(spec, value)]
    found: list[Choice] = []
    for content in contents:
        if spec.path == "seed" and content < 0:
            raise AxisFault(value.at, "-1 would be another seed each time: write seeds, such as seed=1-4")
        checked = _checked(spec.path, content, value, settings)
        shown = number_text(content) if isinstance(content, float) else str(content)
        found.append(Choice(shown, _set({spec.path: checked}), value.at, is_prompt=spec.path in _BEFORE_TAGS))
    return found


def _content(spec: FieldSpec, value: Value) -> Any:
    folded = value.text.casefold()
    if spec.kind == "bool":
        if folded not in (*_TRUE, *_FALSE):
            raise AxisFault(value.at, f"'{value.text}' is neither true nor false")
        return folded in _TRUE
    if spec.kind == "choice":
        known = {str(choice).casefold(): choice for choice in spec.choices}
        if folded not in known:
            close = difflib.get_close_matches(folded, list(known), n=2, cutoff=0.5)
            hint = " or ".join(str(known[name]) for name in close)
            told = f"did you mean {hint}?" if hint else f"there are {spec.range_text}"
            raise AxisFault(value.at, f"there is no '{value.text}' for {spec.path}; {told}")
        return known[folded]
    return value.text


def _checked(path: str, content: Any, value: Value, settings: GridSettings) -> Any:
    """The content as the settings have it. Raises AxisFault where they refuse it."""
    try:
        config = build_generate_config({**settings.values, path: content})
        if path == "base":
            resolve_base(config.base, settings.data, has_vae=bool(config.vae))
        if path == "hires_upscaler":
            resolve_upscaler(settings.data, config.hires_upscaler)
        if path in ("init_image", "mask"):
            config = with_kept_pictures(config, settings.data)
    except ConfigError as error:
        told = "; ".join(finding.message for finding in error.findings) or error.message
        raise AxisFault(value.at, f"'{value.text}' cannot be used: {told}") from error
    except InkwashError as error:
        raise AxisFault(value.at, f"'{value.text}' cannot be used: {error.message} {error.fix}".rstrip()) from error
    return getattr(config, path)


def _set(new: dict[str, Any]) -> Change:
    return lambda values: {**values, **new}


def _replacements(values: Sequence[Value], settings: GridSettings) -> Axis:
    """A1111's Prompt S/R: the first value is what is looked for, and the first cell's own."""
    search = values[0].text
    places = [str(settings.values.get(field, "")) for field in ("prompt", "negative_prompt")]
    if not search or not any(search in place for place in places):
        raise AxisFault(values[0].at, f"'{search}', which is to be replaced, does not stand in the prompt")
    if len(values) < 2:
        raise AxisFault(values[0].at, f"'{search}' is replaced by nothing: write what by, behind a comma")

    def replace(word: str) -> Change:
        def change(cell: dict[str, Any]) -> dict[str, Any]:
            new = {field: str(cell.get(field, "")).replace(search, word) for field in ("prompt", "negative_prompt")}
            return {**cell, **new}

        return change

    choices = [Choice(value.text or "(nothing)", replace(value.text), value.at, is_prompt=True) for value in values]
    return Axis("", f"prompt s/r {search}", tuple(choices))


def _sizes(values: Sequence[Value], settings: GridSettings) -> Axis:
    choices: list[Choice] = []
    for value in values:
        found = _SIZE.fullmatch(value.text)
        if found is None:
            raise AxisFault(value.at, f"'{value.text}' is no size: write it as 512x768")
        width, height = int(found[1]), int(found[2])
        for path, side in (("width", width), ("height", height)):
            _checked(path, side, value, settings)
        choices.append(Choice(f"{width} × {height}", _set({"width": width, "height": height}), value.at))
    return Axis("", "size", tuple(choices))


def _require_different(axis: Axis, values: Sequence[Value]) -> None:
    seen: set[str] = set()
    for choice in axis.choices:
        if choice.label in seen:
            raise AxisFault(choice.at, f"the value '{choice.label}' stands there twice")
        seen.add(choice.label)
