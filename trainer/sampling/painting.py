"""Image-to-image and inpainting: what the model is given of a picture, and how its answer goes back into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional

from trainer.config.generate import GenerateConfig
from trainer.models.components import Components
from trainer.sampling.request import Start

_HALF = 128
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Painting:
    """A picture that is painted over, as a whole or in a part.

    Attributes:
        picture: RGB; what the result is pasted into, where there is a mask.
        seen: the picture that the model works on, of the generation's size.
        mask: grey, of `picture`'s size, with its soft edge; None where all is painted.
        box: the part of `picture` that the model sees.
    """

    picture: Image.Image
    seen: Image.Image
    mask: Image.Image | None
    box: Box

    @classmethod
    def of(
        cls, config: GenerateConfig, picture: Image.Image, mask: Image.Image | None, size: tuple[int, int]
    ) -> Painting:
        """What to do with `picture` (RGB) and its `mask` (grey, of the same size, white where it is painted anew).

        Args:
            config: fitting, soft edge, and what of the picture is seen.
            picture, mask: as above.
            size: width and height that the model makes.
        """
        if mask is not None:
            mask = mask.point([255 if value >= 128 else 0 for value in range(256)])
            if config.masked_area == "only masked":
                mask = _soft(mask, config.mask_blur)
                box = _around(mask, config.mask_padding, size)
                return cls(picture, picture.crop(box).resize(size, Image.Resampling.LANCZOS), mask, box)
            mask = _soft(_fitted(mask, size, config.resize, Image.Resampling.NEAREST), config.mask_blur)
        seen = _fitted(picture, size, config.resize, Image.Resampling.LANCZOS)
        return cls(seen, seen, mask, (0, 0, *size))

    def start(self, components: Components, strength: float) -> Start:
        """Where denoising begins: the VAE's latents of what is seen, and which of them are kept."""
        latents = encode(components, self.seen)
        if self.mask is None:
            return Start(latents, strength)
        seen = self.mask.crop(self.box).resize(self.seen.size, Image.Resampling.BILINEAR)
        if components.is_inpainting:
            return Start(latents, strength, shown=_shown(components, self.seen, seen))
        return Start(latents, strength, _in_latents(components, np.asarray(seen) > 0))

    def finish(self, made: Image.Image) -> Image.Image:
        """The model's picture in its place; outside of the mask every pixel is as it was."""
        if self.mask is None:
            return made
        left, top, right, bottom = self.box
        whole = self.picture.copy()
        whole.paste(made.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
        return Image.composite(whole, self.picture, self.mask)


def wholly_masked(components: Components, width: int, height: int) -> Tensor:
    """What an inpainting model is shown where all is made anew; as `Start.shown`. A quarter of its training was like that."""
    size = width, height
    return _shown(components, Image.new("RGB", size), Image.new("L", size, 255))


def _shown(components: Components, picture: Image.Image, mask: Image.Image) -> Tensor:
    """The mask and the latents of the picture without what is masked, `(1 + channels, height, width)`."""
    # What is more than half masked: where the soft edge ends, the model sees what it has to fit to.
    is_masked = np.asarray(mask) >= _HALF
    hidden = _pixels(picture) * torch.from_numpy(~is_masked)
    return torch.cat([_in_latents(components, is_masked), _encoded(components, hidden)])


def _in_latents(components: Components, is_painted: NDArray[np.bool_]) -> Tensor:
    """`(1, height, width)` float32: 1 for each latent that any painted pixel lies in."""
    pixels = torch.from_numpy(is_painted.astype(np.float32))[None, None]
    return functional.max_pool2d(pixels, components.vae_scale_factor)[0]


def encode(components: Components, picture: Image.Image) -> Tensor:
    """The latents of an RGB picture, `(channels, height, width)` float32 on the CPU: their mean, so the same each time."""
    return _encoded(components, _pixels(picture))


def _pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as `(3, height, width)` in [-1, 1]; 0 is grey."""
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 127.5 - 1).permute(2, 0, 1)


def _encoded(components: Components, pixels: Tensor) -> Tensor:
    with torch.no_grad(), components.resident("vae"):
        return components.family.encode_images(components, pixels[None])[0][0].cpu()


def _fitted(image: Image.Image, size: tuple[int, int], way: str, resampling: Image.Resampling) -> Image.Image:
    if image.size == size:
        return image
    return ImageOps.fit(image, size, resampling) if way == "crop" else image.resize(size, resampling)


def _soft(mask: Image.Image, blur: int) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def _around(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box:
    """The painted part with what is around it, in the shape of `size` as far as the picture's edges allow."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    left, top = max(0, left - padding), max(0, top - padding)
    right, bottom = min(mask.width, right + padding), min(mask.height, bottom + padding)
    wide = max(right - left, round((bottom - top) * size[0] / size[1]))
    high = max(bottom - top, round((right - left) * size[1] / size[0]))
    left, right = _widened(left, right, min(wide, mask.width), mask.width)
    top, bottom = _widened(top, bottom, min(high, mask.height), mask.height)
    return left, top, right, bottom


def _widened(first: int, last: int, length: int, most: int) -> tuple[int, int]:
    first = min(max(0, first - (length - (last - first)) // 2), most - length)
    return first, first + length
