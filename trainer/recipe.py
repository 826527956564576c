"""How a picture was made, inside the picture: the text other tools read, and our own complete settings. No torch.

What is read back from any program's picture, and fitted to this library, is in `trainer.found_recipe`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image
from pydantic import ValidationError

from trainer import __version__
from trainer.config.generate import GenerateConfig, StackedLora
from trainer.errors import ConfigError
from trainer.infotext import write_hashes, write_infotext
from trainer.infotext_options import upscaler_title, write_options
from trainer.lora_tags import plain_number
from trainer.picture_texts import INFOTEXT_KEY, RECIPE_KEY, PictureFile, read_picture_texts, write_picture
from trainer.sampler_names import split_sampler

VERSION_PREFIX = "Inkwash "
_AUTOV2_DIGITS, _SHORT_DIGITS = 10, 12
# How a picture is kept, and what it was computed on, is no part of how it looks.
_NO_RECIPE = ("device", "precision", "output_format", "quality")


@dataclass(frozen=True)
class RecipeHashes:
    """SHA-256 in hex, by which other programs and the download sites know files; empty where they were not computed.

    Attributes:
        model: of the base model, where it is a single file.
        loras: of the tensors alone (as A1111 has it), one for each LoRA of the stack that is on, in its order: names may
            be alike.
        vae: of the VAE's file, where one was chosen.
        embeddings: of the whole files, by name.
    """

    model: str = ""
    loras: Sequence[str] = ()
    embeddings: Mapping[str, str] = field(default_factory=dict)
    vae: str = ""


@dataclass(frozen=True)
class Recipe:
    """One picture: the settings of its generation with what was decided at run time filled in.

    Attributes:
        config: as asked for; the picture's own seed and size stand in `seed`, `width` and `height`.
        base_title: the base model's name for people.
    """

    config: GenerateConfig
    seed: int
    width: int
    height: int
    base_title: str
    hashes: RecipeHashes = RecipeHashes()

    def settings(self) -> dict[str, Any]:
        """Settings that make this one picture again. Files are named, without the folders they lie in."""
        data = self.config.model_dump(mode="json", exclude=set(_NO_RECIPE))
        data |= {"seed": self.seed, "width": self.width, "height": self.height, "count": 1}
        data |= {field: PureWindowsPath(data[field]).name for field in ("init_image", "mask", "vae")}
        data["base"] = short_name(self.config.base)
        data["hires_upscaler"] = upscaler_title(self.config.hires_upscaler)
        data["loras"] = [{**lora, "file": short_name(lora["file"])} for lora in data["loras"] if lora["is_on"]]
        return data

    def document(self) -> dict[str, Any]:
        """All of it, as the picture keeps it."""
        hashes = {"model": self.hashes.model, "loras": list(self.hashes.loras), "vae": self.hashes.vae}
        return {"version": __version__, "settings": self.settings(), "hashes": hashes}

    def infotext(self) -> str:
        """The text that A1111 and its relatives read and write."""
        config = self.config
        loras = [lora for lora in config.loras if lora.is_on]
        names = self._names(loras)
        tags = "".join(_tag(name, lora, config.num_inference_steps) for name, lora in zip(names, loras, strict=True))
        sampler, schedule = split_sampler(config.sampler)
        values: dict[str, Any] = {
            "Steps": config.num_inference_steps,
            "Sampler": sampler,
            "Schedule type": schedule,
            "CFG scale": f"{config.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model hash": self.hashes.model[:_AUTOV2_DIGITS],
            "Model": self.base_title,
            "VAE hash": self.hashes.vae[:_AUTOV2_DIGITS],
            "VAE": PureWindowsPath(config.vae).name,
            "Clip skip": config.clip_skip if config.clip_skip > 1 else "",
            **write_options(config),
            "Lora hashes": _short(dict(zip(names, self.hashes.loras, strict=False))),
            "TI hashes": _short(self.hashes.embeddings),
            "Version": f"{VERSION_PREFIX}{__version__}",
        }
        kept = {key: value for key, value in values.items() if value != ""}
        return write_infotext(config.prompt + tags, config.negative_prompt, kept)

    def _names(self, loras: Sequence[StackedLora]) -> list[str]:
        """What the tags call the LoRAs: other files of the same name get a number, for hashes go by these names."""
        files: dict[str, str] = {}
        names: list[str] = []
        for index, lora in enumerate(loras):
            file = self.hashes.loras[index] if index < len(self.hashes.loras) else lora.file
            name, number = short_name(lora.file), 2
            while files.setdefault(name, file) != file:
                name, number = f"{short_name(lora.file)} {number}", number + 1
            names.append(name)
        return names


def save_picture(image: Image.Image, path: Path, recipe: Recipe) -> Path:
    """Write a picture with its recipe inside, atomically, in the format of its suffix.

    Returns: where it lies: a name with the suffix .png that was free where JPEG has no room for so long a recipe.
    Raises: ResourceError: the disk is full.
    """
    texts = {INFOTEXT_KEY: recipe.infotext(), RECIPE_KEY: json.dumps(recipe.document())}
    return write_picture(image, path, texts, recipe.config.quality)


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings that made a picture, as valid values of GenerateConfig.

    Raises: ConfigError: the picture cannot be read, carries no recipe of Inkwash, or a damaged one.
    """
    picture = read_picture_texts(path)
    if RECIPE_KEY not in picture.texts:
        raise ConfigError(
            "This picture carries no Inkwash recipe.",
            where=str(path),
            fix="Only pictures generated by Inkwash have one; editing or sending a picture can strip it.",
        )
    return own_recipe(picture, path)[0].model_dump(mode="json")


def own_recipe(picture: PictureFile, path: Path) -> tuple[GenerateConfig, dict[str, Any]]:
    """The settings in Inkwash's own text, and the hashes (`model`, `loras`, `vae`). Raises ConfigError: they are damaged."""
    try:
        document = json.loads(picture.texts[RECIPE_KEY])
        hashes = document.get("hashes", {})
        return GenerateConfig.model_validate(document["settings"]), hashes if isinstance(hashes, dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise ConfigError(
            "The recipe in this picture is damaged, or of another version of Inkwash.", where=str(path)
        ) from error


def read_infotext(path: Path) -> str:
    """The picture's text for people and other tools; empty where it has none. Raises ConfigError."""
    return read_picture_texts(path).texts.get(INFOTEXT_KEY, "")


def short_name(file: str) -> str:
    """A file's name without its folder, as tags and recipes have it."""
    name = PureWindowsPath(file).name or file
    return name.removesuffix(".safetensors")


def _short(hashes: Mapping[str, str]) -> str:
    return write_hashes({name: value[:_SHORT_DIGITS] for name, value in hashes.items()})


def _tag(name: str, lora: StackedLora, num_steps: int) -> str:
    """The tag, with what A1111 and lora-block-weight read in their own words; empty where the name cannot stand in one."""
    unet, text = plain_number(lora.unet_weight), plain_number(lora.text_encoder_weight)
    if any(sign in name for sign in ":<>"):
        return ""
    # Two plain weights are UNet and text encoder in some programs and the reverse in others: names leave no doubt.
    parts = [name, unet if unet == text else f"te={text}:unet={unet}"]
    parts += [f"lbw={lora.blocks}"] if lora.blocks else []
    parts += [f"step={_steps(lora, num_steps)}"] if (lora.start, lora.end) != (0.0, 1.0) else []
    return f" <lora:{':'.join(parts)}>"


def _steps(lora: StackedLora, num_steps: int) -> str:
    """Numbers of steps, which all programs read; shares where these would round to none, or to 1, which is also a share."""
    first, last = round(lora.start * num_steps), round(lora.end * num_steps)
    return f"{first}-{last}" if first < last > 1 else f"{plain_number(lora.start)}-{plain_number(lora.end)}"
