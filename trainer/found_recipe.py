"""How somebody's picture was made, fitted to this library: from Inkwash's own text, an infotext, or ComfyUI's graph. No torch.

LoRAs are matched by their hash, then by name; base models likewise. What cannot be taken over is named, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pydantic import ValidationError

from trainer.base_models import list_base_models
from trainer.base_models.scan import known_sha256
from trainer.base_models.vaes import find_vae
from trainer.comfy_prompt import parse_comfy_prompt
from trainer.config.generate import GenerateConfig, StackedLora
from trainer.errors import ConfigError
from trainer.files import is_file
from trainer.found_loras import FoundLora, civitai_resources, tagged_loras
from trainer.infotext import MAX_CHARACTERS, Infotext, parse_infotext
from trainer.infotext_options import SIZE, FindUpscaler, find_upscaler, read_options
from trainer.library import list_loras
from trainer.lora_lookup import match_lora
from trainer.paths import DataFolder
from trainer.picture_texts import INFOTEXT_KEY, RECIPE_KEY, read_picture_texts
from trainer.recipe import VERSION_PREFIX, own_recipe
from trainer.sampler_names import find_comfy_sampler, find_sampler
from trainer.upscalers import BUILT_IN, match_upscaler

COMFY_KEY = "prompt"
_MAX_LORAS = 100
_MAX_SHOWN = 80
_USUAL_STEPS = 20
_NUMBERS: Mapping[str, tuple[str, type]] = {
    "Steps": ("num_inference_steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
}
# What is not said of these is that they were not used.
_UNUSED = GenerateConfig().model_dump(
    mode="json",
    include={
        "clip_skip", "hires_scale", "seamless", "guidance_rescale", "eta", "init_image", "mask", "masked_area",
        "vae", "prediction_type", "zero_terminal_snr",
    },
)  # fmt: skip
# Read elsewhere, or of no effect on the picture.
_READ = {
    name.casefold()
    for name in (
        "Sampler", "Schedule type", "Size", "Model", "Model hash", "Lora hashes", "TI hashes", "Hashes", "Version",
        "Created Date", "Civitai resources", "Civitai metadata", "User", "Score", "Batch size", "Batch pos", "Emphasis",
        "VAE", "VAE hash", *_NUMBERS,
    )
}  # fmt: skip


@dataclass(frozen=True)
class FoundRecipe:
    """A picture's recipe.

    Attributes:
        source: which program's text it was: "Inkwash", "A1111" or "ComfyUI".
        settings: of GenerateConfig, valid, those that are known; the LoRAs under the names that they have here.
        missing: names of LoRAs that the library lacks; they are in `settings` under these names, too.
        notes: sentences about what is otherwise than it was, or could not be taken over.
    """

    source: str
    settings: dict[str, Any]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_any_recipe(data: DataFolder, path: Path) -> FoundRecipe:
    """The recipe in a PNG, JPEG or WebP picture of Inkwash, A1111, Forge, ComfyUI, or a site that writes as they do.

    Raises: ConfigError: it is no picture, or there is no recipe in it that can be read.
    """
    picture = read_picture_texts(path)
    texts = picture.texts
    if RECIPE_KEY in texts:
        return _own(data, *own_recipe(picture, path))
    text = texts.get(INFOTEXT_KEY, "")
    if text.strip() and len(text) <= MAX_CHARACTERS:
        infotext = parse_infotext(text)
        if infotext.settings or COMFY_KEY not in texts:
            return _from_infotext(data, infotext)
    if COMFY_KEY in texts:
        try:
            return _from_comfy(data, texts[COMFY_KEY])
        except (ValueError, OverflowError) as error:
            raise ConfigError(
                f"The ComfyUI workflow in this picture cannot be read: {error}.",
                where=path.name,
                fix="Open it in ComfyUI to see its settings.",
            ) from error
    raise ConfigError(
        "There is no recipe in this picture.",
        where=path.name,
        fix="Pictures of Inkwash, A1111, Forge and ComfyUI have one; editing or sending a picture can strip it.",
    )


def _own(data: DataFolder, config: GenerateConfig, hashes: Mapping[str, Any]) -> FoundRecipe:
    digests, hash_notes = _own_digests(config, hashes.get("loras"))
    loras = [
        FoundLora(lora.file, lora.model_dump(mode="json"), (digest,) if digest else ())
        for lora, digest in zip(config.loras, digests, strict=True)
    ]
    # What says nothing about the picture stays in the form as it is.
    values = config.model_dump(mode="json", exclude={"loras", "device", "precision", "output_format", "quality"})
    found, notes = _base(data, values.pop("base"), str(hashes.get("model", "")))
    notes += hash_notes
    notes += _without_lost_files(data, values)
    values["vae"] = _vae(data, str(values["vae"]), str(hashes.get("vae", "")), notes)
    upscaler = str(values["hires_upscaler"])
    if upscaler not in BUILT_IN:
        values["hires_upscaler"], note = find_upscaler(upscaler, _upscaling_model(data))
        notes += [note] if note else []
    return _fitted(data, "Inkwash", {**values, **found}, loras, notes)


def _own_digests(config: GenerateConfig, written: object) -> tuple[list[str], list[str]]:
    """A hash for each LoRA of a recipe of ours, empty where there is none, and sentences about them.

    Older recipes have them by name, and where two are alike that of the last.
    """
    if isinstance(written, list):
        found = [str(digest) for digest in written[: len(config.loras)]]
        return found + [""] * (len(config.loras) - len(found)), []
    by_name = written if isinstance(written, Mapping) else {}
    names = [lora.file for lora in config.loras]
    double = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    notes = [
        f"Several LoRAs are called '{_cut(name)}' in it: check that each is the one that was used." for name in double
    ]
    return [str(by_name.get(name, "")) for name in names], notes


def _from_infotext(data: DataFolder, text: Infotext) -> FoundRecipe:
    values: dict[str, Any] = {**(_UNUSED if text.settings else {}), "negative_prompt": text.negative_prompt}
    notes: list[str] = []
    for name, (field, kind) in _NUMBERS.items():
        if written := text.get(name):
            try:
                values[field] = kind(float(written)) if kind is int and "." in written else kind(written)
            except (ValueError, OverflowError):
                notes.append(f"{name} '{_cut(written)}' is no number.")
    if size := SIZE.fullmatch(text.get("Size")):
        values |= {"width": int(size[1]), "height": int(size[2])}
    if sampler := text.get("Sampler"):
        name, note = find_sampler(sampler, text.get("Schedule type"))
        values |= {"sampler": name} if name else {}
        notes += [note] if note else []
    options = read_options(text, values.get("sampler", ""), _upscaling_model(data))
    values |= options.values
    notes += options.notes
    values |= _rounded(values, notes)
    is_ours = text.get("Version").startswith(VERSION_PREFIX)
    words, loras = tagged_loras(text, values.get("num_inference_steps", _USUAL_STEPS), notes, weights_are_ours=is_ours)
    values["prompt"] = words
    model = text.get("Model")
    if not loras:
        loras, checkpoint = civitai_resources(text)
        model = model or checkpoint
    found, base_notes = _base(data, model, text.get("Model hash"))
    if vae := text.get("VAE"):
        values["vae"] = _vae(data, vae, text.get("VAE hash"), notes)
    known = _READ | options.read
    unread = [f"{key}: {_cut(value)}" for key, value in text.settings.items() if key.casefold() not in known]
    unread += [_cut(line) for line in text.rest.split("\n") if line.strip()]
    notes += [*base_notes, *_lost_words(data, text)]
    notes += [f"Not taken over: {', '.join(unread)}."] if unread else []
    return _fitted(data, "A1111", {**values, **found}, loras, notes)


def _from_comfy(data: DataFolder, graph: str) -> FoundRecipe:
    recipe = parse_comfy_prompt(graph)
    values = {**_UNUSED, **recipe.values}
    notes = [f"Not taken over: {note}." for note in recipe.notes]
    values |= _rounded(values, notes)
    if recipe.sampler:
        name, note = find_comfy_sampler(recipe.sampler, recipe.schedule)
        values |= {"sampler": name} if name else {}
        notes += [note] if note else []
    if recipe.upscaler:
        values["hires_upscaler"], note = find_upscaler(recipe.upscaler, _upscaling_model(data))
        notes += [note] if note else []
    loras = [
        FoundLora(_stem(name), {"unet_weight": unet, "text_encoder_weight": text}) for name, unet, text in recipe.loras
    ]
    found, base_notes = _base(data, _stem(recipe.model), "")
    return _fitted(data, "ComfyUI", {**values, **found}, loras, [*notes, *base_notes])


def _fitted(
    data: DataFolder, source: str, values: dict[str, Any], loras: Sequence[FoundLora], notes: Iterable[str]
) -> FoundRecipe:
    """Valid settings, with the LoRAs found in the library."""
    all_notes = list(notes)
    settings = _valid(values, all_notes)
    entries = [entry for entry in list_loras(data) if entry.info is not None] if loras else []
    stack: list[dict[str, Any]] = []
    missing: list[str] = []
    for lora in loras[:_MAX_LORAS]:
        entry, note = match_lora(data, lora.name, lora.digests, entries)
        all_notes += [note] if note else []
        try:
            found = StackedLora.model_validate({**lora.values, "file": entry.name if entry else lora.name})
        except ValidationError as error:
            all_notes.append(f"The LoRA '{_cut(lora.name)}' was left off: {error.errors()[0]['msg']}.")
            continue
        stack.append(found.model_dump(mode="json"))
        missing += [] if entry else [lora.name]
    if len(loras) > _MAX_LORAS:
        all_notes.append(f"{len(loras) - _MAX_LORAS} further LoRAs were left off.")
    return FoundRecipe(source, {**settings, "loras": stack}, tuple(dict.fromkeys(missing)), tuple(all_notes))


def _upscaling_model(data: DataFolder) -> FindUpscaler:
    def find(name: str) -> str:
        found = match_upscaler(data, name)
        return found.name if found else ""

    return find


def _without_lost_files(data: DataFolder, values: dict[str, Any]) -> list[str]:
    """Take off the start picture and the mask that are not on this computer; sentences about them."""
    notes: list[str] = []
    if (name := values["init_image"]) and not is_file(data.inputs / name):
        values |= {"init_image": ""}
        notes.append(f"The start picture '{_cut(name)}' is not on this computer: choose it again.")
    if (name := values["mask"]) and not (values["init_image"] and is_file(data.inputs / name)):
        values |= {"mask": "", "masked_area": "whole picture"}
        notes.append(f"The mask '{_cut(name)}' is not on this computer: draw or choose it again.")
    return notes


def _vae(data: DataFolder, name: str, digest: str, notes: list[str]) -> str:
    """The path of the VAE that a recipe names; empty for the model's own, or one that is not here, which is noted."""
    if not name:
        return ""
    path, note = find_vae(data, _cut(name), digest)
    notes += [note] if note else []
    return str(path) if path else ""


def _valid(values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The values that a generation can have; the others are named."""
    for _ in range(len(values)):
        try:
            config = GenerateConfig.model_validate(values)
        except ValidationError as error:
            faulty = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
            if not faulty:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                faulty = {name for name in values if re.search(rf"^{name}: ", message, re.MULTILINE)} or set(values)
            for name in sorted(faulty):
                notes.append(
                    f"{name.replace('_', ' ').capitalize()} '{_cut(values.pop(name, ''))}' cannot be used here."
                )
            continue
        return {key: value for key, value in config.model_dump(mode="json").items() if key in values}
    return {}


def _rounded(values: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    """The size as it can be made, where there is one."""
    if "width" not in values or "height" not in values:
        return {}
    width, height = int(values["width"]), int(values["height"])
    size = {"width": round(width / 8) * 8, "height": round(height / 8) * 8}
    if (size["width"], size["height"]) != (width, height):
        notes.append(f"The size {width} x {height} was rounded to {size['width']} x {size['height']}.")
    return size


def _base(data: DataFolder, name: str, digest: str) -> tuple[dict[str, str], list[str]]:
    """The base model as `{"base": …}`: by a hash that was computed before, then by name; and a sentence if it is not here."""
    if not name and not digest:
        return {}, []
    models = [model for model in list_base_models(data) if not model.problem]
    start = digest.strip().casefold().removeprefix("0x")
    if len(start) >= 10:  # AutoV2; the older hashes of 8 digits are of another kind
        for model in models:
            if model.path.is_file() and known_sha256(data, model.path).startswith(start):
                return {"base": model.name}, []
    wanted = _stem(name).casefold()
    for model in models:
        names = {
            model.name,
            model.title,
            Path(model.name).name,
            model.path.stem if model.path.is_file() else model.path.name,
        }
        if wanted and wanted in {text.casefold() for text in names}:
            return {"base": model.name}, []
    return {}, [f"The base model '{_cut(name or digest)}' is not among yours; the one chosen stays."]


def _lost_words(data: DataFolder, text: Infotext) -> list[str]:
    names = [part.rpartition(":")[0].strip() for part in text.get("TI hashes").split(",") if ":" in part]
    if not names:
        return []
    known = {entry.path.stem.casefold() for entry in list_loras(data) if entry.info and entry.info.is_embedding}
    return [f"The embedding '{_cut(name)}' is not in the library." for name in names if name.casefold() not in known]


def _stem(file: str) -> str:
    """A file's name without folders (of any system) and suffix."""
    name = PureWindowsPath(PurePosixPath(file).name).name
    return re.sub(r"\.(safetensors|ckpt|pt|bin|gguf)$", "", name, flags=re.IGNORECASE)


def _cut(value: object) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"
