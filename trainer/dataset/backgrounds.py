"""Backgrounds that the user took away: what is no subject is filled with a colour before the picture is cropped. No file is changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from trainer.dataset.masks import MaskFacts
from trainer.errors import DatasetError
from trainer.files import file_sha256

_COLOUR = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True)
class Background:
    """A colour such as `#ffffff`, and the mask that says where the subject is."""

    mask: MaskFacts
    colour: str

    @property
    def content(self) -> str:
        """Names what it makes of a picture."""
        return f"{self.mask.sha256}{self.colour}"

    def apply(self, image: Image.Image) -> Image.Image:
        """The RGB picture, as the mask lies on it, with its background filled; where the mask is grey, a mixture.

        Raises: DatasetError: the mask was changed or removed since the data set was looked at.
        """
        coverage = self.mask.coverage().convert("L")
        if file_sha256(self.mask.path) != self.mask.sha256:
            raise DatasetError("A mask was changed meanwhile.", where=str(self.mask.path), fix="Look at it again.")
        coverage = coverage.resize(image.size, Image.Resampling.BILINEAR)
        return Image.composite(image, Image.new("RGB", image.size, self.colour), coverage)


def checked_colour(text: str) -> str:
    """A colour as it is kept: `#` and six small hexadecimal digits. Raises DatasetError: it is none."""
    colour = text.strip().lower()
    names = {"white": "#ffffff", "grey": "#808080", "gray": "#808080", "black": "#000000"}
    colour = names.get(colour, colour)
    if not _COLOUR.fullmatch(colour):
        raise DatasetError("This is no colour.", where=text[:40], fix="Give white, grey, black or one such as #aabbcc.")
    return colour
