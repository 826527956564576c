"""The captioner that needs no model: words of file and folder names, main colours, and composition. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.captioners.captioner import Description, Subject, Tag
from trainer.config.caption import CaptionConfig
from trainer.dataset.captions import caption_from_name
from trainer.dataset.colour_names import colour_names

_SIDE = 64
_MOST_COLOURS = 3
_COLOUR_SHARE = 0.12
"""Of the picture: what covers less is no main colour."""
_PLAIN_SHARE = 0.9
"""Of the border that has one colour, for a plain background."""


class BuiltinCaptioner:
    """Words of the file's name and its folders, and what numbers say of the picture."""

    def describe(self, subject: Subject) -> Description:
        """Tags with scores; names first, then composition, then colours with the share that they cover."""
        path = PurePosixPath(subject.name)
        folders = [caption_from_name(part) for part in path.parent.parts]
        names = [caption_from_name(path.stem), *reversed(folders)]
        tags = [Tag(words, 1.0) for words in dict.fromkeys(names) if words]
        return Description((*tags, *composition(subject.image), *colours(subject.image)))


def load(config: CaptionConfig, check_stop: Callable[[], None]) -> BuiltinCaptioner:
    """Nothing is to be loaded."""
    return BuiltinCaptioner()


def composition(image: Image.Image) -> list[Tag]:
    """The shape of a picture, its brightness, and a background of one colour."""
    ratio = image.width / image.height
    shape = "wide picture" if ratio > 1.15 else "tall picture" if ratio < 0.87 else "square picture"
    tags = [Tag(shape, 0.9)]
    pixels = _small(image)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    sides = np.concatenate([pixels[3:-3, :3].reshape(-1, 3), pixels[3:-3, -3:].reshape(-1, 3)])
    edge = np.concatenate([border, sides])
    middle = np.median(edge, axis=0)
    if np.mean(np.abs(edge - middle).max(axis=1) < 0.08) > _PLAIN_SHARE:
        colour = colour_names(middle[None, :])[0]
        tags += [Tag(f"{colour} background", 0.8), Tag("simple background", 0.79)]
    brightness = float(np.mean(pixels @ np.array([0.299, 0.587, 0.114])))
    if brightness < 0.25:
        tags.append(Tag("dark picture", 0.7))
    elif brightness > 0.8:
        tags.append(Tag("bright picture", 0.7))
    return tags


def colours(image: Image.Image) -> list[Tag]:
    """The main colours by the share that they cover, such as "blue colours"; "monochrome" where there is no hue."""
    pixels = _small(image).reshape(-1, 3)
    names, counts = np.unique(colour_names(pixels), return_counts=True)
    shares = dict(zip(names.tolist(), (counts / len(pixels)).tolist(), strict=True))
    without_hue = sum(shares.get(name, 0.0) for name in ("black", "grey", "white"))
    if without_hue > 0.97:
        return [Tag("monochrome", 0.6)]
    main = sorted(shares, key=lambda name: -shares[name])[:_MOST_COLOURS]
    return [Tag(f"{name} colours", round(0.5 * shares[name], 4)) for name in main if shares[name] >= _COLOUR_SHARE]


def _small(image: Image.Image) -> NDArray[np.float64]:
    """Pixels of a small copy, shape (64, 64, 3), 0 to 1."""
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
