"""What the user did to a picture before it is cut to its size, in one place, so that whoever reads its pixels sees the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.dataset.backgrounds import Background
from trainer.dataset.crops import Crop
from trainer.dataset.pictures import open_picture
from trainer.dataset.turns import turned


@dataclass(frozen=True)
class Preparation:
    """Done in this order: a turn in degrees clockwise, a background that is filled, and a crop in px of the turned picture."""

    turn: int = 0
    background: Background | None = None
    crop: Crop | None = None

    @property
    def content(self) -> str:
        """Names what it does to a picture; empty where that is nothing."""
        turn = f"-turn{self.turn}" if self.turn else ""
        part = "" if self.crop is None else f"-{'-'.join(map(str, self.crop.box))}"
        return f"{turn}{part}" + ("" if self.background is None else f"-{self.background.content}")

    def open(self, path: Path) -> Image.Image:
        """The picture exactly as it is trained before it is cut to its bucket.

        Raises: DatasetError: as `open_picture`, and where the mask of the background changed.
        """
        image = turned(open_picture(path), self.turn)
        if self.background is not None:
            image = self.background.apply(image)
        return image if self.crop is None else self.crop.apply(image)


AS_IN_FILE = Preparation()
