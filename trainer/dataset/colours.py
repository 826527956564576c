"""Colours as base models saw them: any picture that Pillow decodes as opaque 8-bit sRGB."""

from __future__ import annotations

import io
import math
import struct
import zlib
from functools import cache
from typing import cast

from PIL import Image, ImageCms

from trainer.dataset.problems import Problem, warning

# What Pillow's decoders have been seen to raise on broken files, beside OSError.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[Problem]]:
    """A decoded picture as RGB with 8 bits, opaque, and what had to be said about it. Raises DECODER_ERRORS."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_8_bit(image).convert("RGB"), []
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return _on_white(image)
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and image.mode in ("RGB", "CMYK"):
        return _with_profile(image, profile)
    return image.convert("RGB"), []


def to_coverage(image: Image.Image) -> tuple[Image.Image, list[Problem]]:
    """What a decoded picture covers, as grey with 8 bits: its alpha channel where that is used, else its brightness."""
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        alpha = image.convert("RGBA").getchannel("A")
        if extremes(alpha)[0] < 255:
            return alpha, []
    colours, problems = to_rgb(image)
    return colours.convert("L"), problems


def extremes(band: Image.Image) -> tuple[float, float]:
    """Lowest and highest value of a picture with one band."""
    low, high = cast(tuple[float, float], band.getextrema())
    return low, high


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, integer or float. Pillow's own conversion clips at 255: everything would be white."""
    if image.mode == "F":
        low, high = extremes(image)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinite pixels")
        scale = 255.0 if high <= 1.0 else 1.0 if high <= 255.0 else 255.0 / high
        return image.point(lambda value: value * scale + 0.5).convert("L")
    whole = image.convert("I")
    highest = extremes(whole)[1]
    scale = 1 / 257 if highest <= 65535 else 255 / highest
    return whole.point(lambda value: value * scale + 0.5).convert("L")


def _on_white(image: Image.Image) -> tuple[Image.Image, list[Problem]]:
    whole = image.convert("RGBA")
    lowest, highest = extremes(whole.getchannel("A"))
    if lowest == 255:
        return whole.convert("RGB"), []
    if highest == 0:
        fix = "Save it with an opaque background."
        found = [warning("transparent", "This picture is wholly transparent: it is trained as plain white.", fix)]
    else:
        found = [warning("transparent", "The transparent parts of this picture are shown on white.")]
    ground = Image.new("RGBA", whole.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, whole).convert("RGB"), found


def _with_profile(image: Image.Image, profile: bytes) -> tuple[Image.Image, list[Problem]]:
    """Colours of wide-gamut and CMYK pictures as sRGB, which is what base models saw."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return image, []
        converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, *DECODER_ERRORS):
        return image.convert("RGB"), [
            warning("colour_profile", "The colour profile of this picture is damaged; its colours may be a little off.")
        ]
    return (converted if converted is not None else image.convert("RGB")), []


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
